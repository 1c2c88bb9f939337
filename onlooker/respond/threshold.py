"""Speak once when the model's yes is likely for long enough; speak again only after a quiet time.

A plain threshold on a number that flickers fires twenty times. Three things make one event of it: two thresholds (the
condition begins at `threshold` and is over below `clear`), a time it must hold, and a time it must have been over
before it counts as new. Published triggers have one or two of these (the silence threshold of VideoLLM-online, Chen et
al. 2024; the reset sum of MMDuet, Wang et al. 2024; the span rule of STRIDE); an alert needs all three.
"""

from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import SILENT, Decision, Moment, ResponsePolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState


@dataclass
class Condition(StreamState):
    """What `Threshold` remembers of the condition; times in stream seconds."""

    true: bool = False
    """Was it true at the last moment?"""
    last_s: float | None = None
    """When the last moment was."""
    held_s: float = 0.0
    """Seconds it held, less half of those in which it did not; at least 0."""
    told: bool = False
    """Was it told, and has not been over for long enough since?"""
    true_s: float = 0.0
    """When it was last true, once it was told."""


@dataclass(frozen=True)
class Threshold(ResponsePolicy):
    """One event for one condition, however it flickers."""

    needs: ClassVar[frozenset[str]] = frozenset({"speak_probability"})

    threshold: float = 0.7
    """Probability of yes at which the condition begins."""
    clear: float | None = None
    """Probability below which the condition is over; none means three quarters of the threshold."""
    hold_s: float = 2.0
    """Seconds the condition must hold before it is told; when it flickers, a second off takes back half a second."""
    cooldown_s: float = 10.0
    """Seconds the condition must have been over before it can be told again."""

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise InputError("threshold lies in (0, 1]", given=str(self.threshold), do="0.7 is a good start")
        if not 0.0 <= self.clear_below <= self.threshold:
            raise InputError(
                "clear lies between 0 and the threshold",
                given=f"clear={self.clear}, threshold={self.threshold}",
                do="leave clear out, or make it lower",
            )
        for name in ("hold_s", "cooldown_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is a number of seconds", given=str(getattr(self, name)), do="use 0 or more")

    @property
    def clear_below(self) -> float:
        """Probability below which the condition is over."""
        return 0.75 * self.threshold if self.clear is None else self.clear

    def new_state(self) -> Condition:
        return Condition()

    def decide(self, moment: Moment, state: Condition) -> Decision:
        """Speaks once per condition. A moment nobody asked the model about (no probability) changes nothing."""
        likely = moment.speak_probability
        if likely is None:
            return SILENT
        return Decision("speak" if self._begins(moment.time_s, likely, state) else "silent", likely, self.threshold)

    def _begins(self, time_s: float, likely: float, state: Condition) -> bool:
        # Between two moments it was what it was at the first: so a flicker counts by how long it is on.
        passed_s = 0.0 if state.last_s is None else time_s - state.last_s
        state.held_s = max(0.0, state.held_s + (passed_s if state.true else -passed_s / 2))
        state.last_s = time_s
        if likely < self.clear_below:
            state.true = False
        elif likely >= self.threshold:
            state.true = True
        if state.told:
            if state.true:
                state.true_s = time_s  # the quiet time begins anew whenever the condition flares up
            elif time_s - state.true_s >= self.cooldown_s:
                state.told, state.held_s = False, 0.0
            return False
        if not state.true or state.held_s < self.hold_s:
            return False
        state.told, state.true_s = True, time_s
        return True
