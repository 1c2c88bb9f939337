"""Speak when a small trained decision net says so, which knows what it has answered (Dispider).

Qian et al., "Dispider", CVPR 2025 (arXiv 2501.03218): perception, decision and reaction are apart. A small model reads
every clip, the question, and marks where it has answered already, and decides; the reaction is written by another at
the same time and never enters the decision. Here the net looks at every frame's tokens for the rule's request (see
`Decider`), when the rule spoke last is its history, and replies are decoded beside the stream. Changed: a net of some
70,000 numbers for a 1.5B model, frames for clips, and a least time between two replies. The second veto is the rule's
`veto`.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from onlooker.core.checks import number
from onlooker.core.contracts import Moment
from onlooker.respond._scored import Armed, Scored


@dataclass(frozen=True)
class Dispider(Scored):
    """A threshold on a trained decision."""

    needs: ClassVar[frozenset[str]] = frozenset({"decision"})
    realises: ClassVar[tuple[str, ...]] = ("dispider",)

    theta: float = 0.5
    """Probability from which it reacts; published is a logit above 0."""
    _: KW_ONLY
    quiet_s: float = 1.0
    """Least seconds between two times it speaks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("theta", self.theta, above=0.0, most=1.0, do="0.5, as published")

    def weigh(self, moment: Moment, state: Armed) -> tuple[float, float] | None:
        """The decision of this frame."""
        return None if moment.decision is None else (moment.decision, self.theta)
