"""Speak at fixed times, whatever is seen: the control that every other policy has to beat.

A policy that is not better than the best clock at equal alarms has learnt nothing about the video; on StreamingBench's
proactive items a blind clock is right for more than half (`docs/results.md`).
"""

from dataclasses import KW_ONLY, dataclass

from onlooker.core.checks import number
from onlooker.core.contracts import Moment
from onlooker.respond._scored import Armed, Scored


@dataclass
class Began(Armed):
    """When the clock began."""

    first_s: float | None = None
    """Stream time of the first moment."""


@dataclass(frozen=True)
class Clock(Scored):
    """Every so many seconds, after a first wait."""

    period_s: float = 10.0
    """Seconds between two times it speaks."""
    first_s: float | None = None
    """Seconds before it speaks first; none: `period_s`."""
    _: KW_ONLY
    quiet_s: float = 0.0
    """Least seconds between two times it speaks, if longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("period_s", self.period_s, above=0.0, unit="seconds", do="use 10")
        if self.first_s is not None:
            number("first_s", self.first_s, least=0.0, unit="seconds", do="leave it out")

    def new_state(self) -> Began:
        return Began()

    def weigh(self, moment: Moment, state: Began) -> tuple[float, float]:
        """Seconds since it spoke, or since it began."""
        state.first_s = moment.time_s if state.first_s is None else state.first_s
        if state.spoke_s is None:
            return moment.time_s - state.first_s, self.period_s if self.first_s is None else self.first_s
        # Half a millisecond of grace: times of frames are rounded.
        return moment.time_s - state.spoke_s + 5e-4, self.period_s
