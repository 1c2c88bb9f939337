"""Speak when the newest frame is unlikely under what was seen.

Our own, in the spirit of Bayesian surprise (Itti and Baldi, 2009): how far the language model's last hidden state of
the frame is from the running mean of the last half minute, in running variances. The model has read the past when it
reads the frame, so the same picture surprises once. Costs no pass and needs no training, on any model.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from onlooker.core.checks import number
from onlooker.core.contracts import Moment
from onlooker.respond._scored import Armed, Scored


@dataclass(frozen=True)
class Surprise(Scored):
    """A threshold on surprise."""

    needs: ClassVar[frozenset[str]] = frozenset({"surprise"})

    threshold: float = 4.0
    """Mean squared distance in variances from which a frame counts; 1 is as usual."""
    _: KW_ONLY
    clear: float | None = 0.5
    """Share of the threshold below which the score must fall before it speaks again; none: the quiet time is enough."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("threshold", self.threshold, above=0.0, do="4 is twice the usual distance")

    def weigh(self, moment: Moment, state: Armed) -> tuple[float, float] | None:
        return None if moment.surprise is None else (moment.surprise, self.threshold)
