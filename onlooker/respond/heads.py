"""Speak when trained heads on a frame's last token say that it is worth it (MMDuet).

Wang et al., "VideoLLM Knows When to Speak" (MMDuet), 2024 (arXiv 2411.17991): an informative head (is there something
new?) and a relevance head (does it belong to the request?). Their probabilities are added; `instant` speaks when the
sum exceeds `theta`, `sum` adds it up over frames and begins anew after speaking. The reply is rolled back by
construction (`then=answer`): no frame sees it. Changed: a least time between two replies, and a half-life.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from onlooker.core.checks import number
from onlooker.core.contracts import Moment, VideoModel
from onlooker.core.errors import InputError, ModelError
from onlooker.respond._scored import Armed, Scored


@dataclass
class Summed(Armed):
    """The sum so far."""

    total: float = 0.0
    last_s: float | None = None
    """When the last moment was."""
    spoken_s: float | None = None
    """The reply after which the sum began."""


@dataclass(frozen=True)
class Heads(Scored):
    """A threshold on heads, or on their sum over time."""

    needs: ClassVar[frozenset[str]] = frozenset({"heads"})
    realises: ClassVar[tuple[str, ...]] = ("mmduet",)

    names: tuple[str, ...] = ("informative", "relevance")
    """Heads whose probabilities are added."""
    rule: Literal["instant", "sum"] = "instant"
    """Is one frame enough, or does it add up?"""
    theta: float = 0.5
    """Where it counts; published are 0.5 for `instant` and 2 for `sum`."""
    half_life_s: float | None = None
    """Seconds after which half of the sum is forgotten; none: nothing is."""
    _: KW_ONLY
    quiet_s: float = 2.0
    """Least seconds between two times it speaks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("theta", self.theta, above=0.0, do="0.5")
        if self.half_life_s is not None:
            number("half_life_s", self.half_life_s, above=0.0, unit="seconds", do="leave it out")
        if not self.names:
            raise InputError("heads have names", given="none", do="names=informative+relevance")

    def new_state(self) -> Summed:
        return Summed()

    def check(self, model: VideoModel) -> None:
        """As `Method.check`; the model must have heads of these names."""
        super().check(model)
        if missing := sorted(set(self.names) - set(model.head_names)):
            raise ModelError(
                f"{model.spec.name} has no such head",
                given=", ".join(missing),
                do=f"names={'+'.join(model.head_names)}",
            )

    def weigh(self, moment: Moment, state: Summed) -> tuple[float, float] | None:
        """The probabilities of this frame, or of all since it spoke."""
        if moment.heads is None:
            return None
        score = sum(moment.heads[name] for name in self.names)
        if self.rule == "instant":
            return score, self.theta
        if state.spoke_s != state.spoken_s:
            state.total, state.spoken_s = 0.0, state.spoke_s
        if self.half_life_s is not None and state.last_s is not None:
            state.total *= 0.5 ** ((moment.time_s - state.last_s) / self.half_life_s)
        state.total, state.last_s = state.total + score, moment.time_s
        return state.total, self.theta
