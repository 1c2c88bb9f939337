"""A policy that gives a score and where it counts: hysteresis and quiet time are the base's, the same for all."""

from abc import abstractmethod
from dataclasses import dataclass

from onlooker.core.contracts import SILENT, Decision, Moment, ResponsePolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState


@dataclass
class Armed(StreamState):
    """Whether a policy may speak; times in stream seconds."""

    armed: bool = True
    """Has the score been below `clear` since it spoke?"""
    since_s: float | None = None
    """Since when the score has counted."""
    spoke_s: float | None = None
    """When it spoke last."""


@dataclass(frozen=True, kw_only=True)
class Scored(ResponsePolicy):
    """Speaks when a score counts, for long enough, and not again too soon."""

    hold_s: float = 0.0
    """Seconds the score must count before it speaks."""
    quiet_s: float = 5.0
    """Least seconds between two times it speaks."""
    clear: float | None = None
    """Share of the threshold below which the score must fall before it speaks again; none: the quiet time is enough."""

    def __post_init__(self) -> None:
        for name in ("hold_s", "quiet_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is a number of seconds", given=str(getattr(self, name)), do="use 0 or more")
        if self.clear is not None and not 0.0 <= self.clear <= 1.0:
            raise InputError("clear is a share of the threshold", given=str(self.clear), do="0.75, or leave it out")

    def new_state(self) -> Armed:
        return Armed()

    @abstractmethod
    def weigh(self, moment: Moment, state: Armed) -> tuple[float, float] | None:
        """The score of this moment, at least 0, and the threshold from which it counts; None: this moment tells
        nothing. Called once a moment; `state` is updated."""

    def decide(self, moment: Moment, state: Armed) -> Decision:
        """Speaks when the score has counted for `hold_s`, has been below `clear` since, and it was quiet."""
        weighed = self.weigh(moment, state)
        if weighed is None:
            return SILENT
        score, threshold = weighed
        if self.clear is None or score < self.clear * threshold:
            state.armed = True
        if score < threshold:
            state.since_s = None
            return Decision("silent", score, threshold)
        state.since_s = moment.time_s if state.since_s is None else state.since_s
        rested = state.spoke_s is None or moment.time_s - state.spoke_s >= self.quiet_s
        if not state.armed or not rested or moment.time_s - state.since_s < self.hold_s:
            return Decision("silent", score, threshold)
        state.armed, state.since_s, state.spoke_s = False, None, moment.time_s
        return Decision("speak", score, threshold)
