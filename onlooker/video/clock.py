"""From presentation time stamps to seconds since the stream began, whatever the stamps do.

The rule, in order:

1. A stamp counts from the origin: the stream's declared start, or its first stamp where none is declared or that is
   earlier. Gaps are real and kept.
2. No stamp: the time is guessed, one frame interval after the frame before (`num_guessed_times`).
3. A repeated stamp, or one that runs back by at most `max_back_s`: the time is set just after the frame before, and the
   clock is not moved, so the error never adds up (`num_repaired_times`). More than `MAX_LATE_RUN` in a row means that
   the clock itself moved back: rule 4.
4. A stamp further back (restart, splice), or forward by more than `max_gap_s` (but not to before an end that the file
   states), or forward by more than
   `max_overrun_s` to past the declared end: the clock leapt, not the picture. The frame is set one interval after the
   frame before, and the origin moves so that later stamps follow on (`num_clock_jumps`).

A step forward of more than `GAP_STEPS` usual intervals that is believed is counted too (`num_gaps`): it is a pause, a
variable rate, or pictures lost on the way, and nobody can tell which from the stamps.

Times therefore strictly increase. All sums are exact fractions; one rounding to float at the end.
"""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction

from onlooker.video.source import SourceReport

MAX_LATE_RUN = 8
SMALLEST_STEP = Fraction(1, 1000)
NUM_STEPS = 5
USUAL_INTERVAL = Fraction(1, 25)
GAP_STEPS = Fraction(5, 2)


@dataclass(frozen=True, slots=True)
class ClockRule:
    """Where a stamp stops being believed. Seconds. A live source would use a `max_gap_s` of about ten."""

    max_back_s: float = 1.0
    """A stamp this little before the last one is a disorder, further back is a restart."""
    max_gap_s: float = 3600.0
    """A longer gap forward is a leap of the clock."""
    max_overrun_s: float = 10.0
    """A longer gap forward is a leap too when it lands past the declared end."""


class Clock:
    """Turns the stamps of one stream, in the order shown, into strictly increasing seconds >= 0.

    `origin` is the declared start in seconds (None: the first stamp), `end_s` the declared length, `interval_s` the
    declared frame interval. With `is_end_certain` a gap that ends within the declared length is kept however long.
    Counts what it had to repair in `report`.
    """

    def __init__(
        self,
        report: SourceReport,
        *,
        origin: Fraction | None = None,
        end_s: float | None = None,
        interval_s: Fraction | None = None,
        is_end_certain: bool = False,
        rule: ClockRule | None = None,
    ) -> None:
        self.origin = origin
        self._steps = deque([interval_s if interval_s else USUAL_INTERVAL], maxlen=NUM_STEPS)
        self._report = report
        self._end_s = end_s
        self._is_end_certain = is_end_certain
        self._rule = rule if rule is not None else ClockRule()
        self._last: Fraction | None = None
        self._late_run = 0
        self._is_anchored = False

    @property
    def interval(self) -> Fraction:
        """The usual time between frames: the median of the last few, so that one gap does not count."""
        return sorted(self._steps)[len(self._steps) // 2]

    def restart(self) -> None:
        """Forget the last frame but keep the origin: the next stamp is taken as it is (after seeking)."""
        self._last = None
        self._late_run = 0

    def time_of(self, pts: int | None, time_base: Fraction | None) -> float:
        """Return seconds since the stream began for a frame stamped `pts` in units of `time_base` seconds."""
        if pts is None or not time_base:
            self._report.num_guessed_times += 1
            self._last = Fraction(0) if self._last is None else self._last + self.interval
            return float(self._last)
        stamp = pts * time_base
        self._last = self._first(stamp) if self._last is None else self._follow(stamp, self._last)
        return float(self._last)

    def _first(self, stamp: Fraction) -> Fraction:
        if self.origin is None or (stamp < self.origin and not self._is_anchored):
            self.origin = stamp
        self._is_anchored = True
        return max(stamp - self.origin, Fraction(0))

    def _follow(self, stamp: Fraction, last: Fraction) -> Fraction:
        joined = last + self.interval
        if not self._is_anchored:
            # Only guessed times so far (an RTSP stream's first frame has no stamp): this stamp says where they were.
            self._is_anchored = True
            if self.origin is None or stamp - self.origin <= last:
                self.origin = stamp - joined
        assert self.origin is not None
        ahead = stamp - self.origin - last
        if ahead <= 0:
            self._late_run += 1
            if -ahead <= self._rule.max_back_s and self._late_run <= MAX_LATE_RUN:
                self._report.num_repaired_times += 1
                return last + min(SMALLEST_STEP, self.interval / 2)
        elif not self._is_leap(ahead, last):
            self._late_run = 0
            if ahead > GAP_STEPS * self.interval:
                self._report.num_gaps += 1
            self._steps.append(ahead)
            return last + ahead
        self._report.num_clock_jumps += 1
        self.origin = stamp - joined
        return joined

    def _is_leap(self, ahead: Fraction, last: Fraction) -> bool:
        if self._end_s is None:
            return ahead > self._rule.max_gap_s
        if last + ahead > self._end_s + self._rule.max_overrun_s:
            return ahead > self._rule.max_overrun_s
        return ahead > self._rule.max_gap_s and not self._is_end_certain
