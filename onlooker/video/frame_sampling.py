"""Which frames to take: the first at or after each due time, judged by time and never by counting frames."""

import math

from onlooker.core.checks import number

MAX_SLACK_S = 0.001


class FrameSampler:
    """Takes, for each due time `start_s + k / fps` (k = 0, 1, ...), the first frame at or after it.

    A frame that is first for several due times (the stream is slower than `fps`, or has a gap) is taken once. With
    `fps=None` every frame from `start_s` on is taken. Containers round times to the millisecond, so a frame up to
    1 ms early (at most a quarter of an interval) counts as on time; without that slack 30 fps sampling of a
    30 fps Matroska file would lose frames. Times must not decrease. Raises `InputError` for a bad `fps` or `start_s`.
    """

    def __init__(self, fps: float | None = 1.0, start_s: float = 0.0) -> None:
        if fps is not None:
            fps = number("fps", fps, above=0.0, unit="frames a second", do="fps=1.0, or fps=None for every frame")
        self.fps = fps
        self.start_s = number("start_s", start_s, least=0.0, unit="seconds", do="start_s=0.0")
        self.slack_s = MAX_SLACK_S if fps is None else min(MAX_SLACK_S, 0.25 / fps)
        self._next_due = 0

    def from_due(self, k: int) -> "FrameSampler":
        """A sampler of the same times whose next due time is number `k`, as if all before it had been served."""
        later = FrameSampler(self.fps, self.start_s)
        later._next_due = k
        return later

    def due_s(self, k: int) -> float:
        """Due time number `k`, in seconds; there are none without `fps`."""
        return self._due_s(k)

    def is_due(self, time_s: float) -> bool:
        """Say whether a frame at `time_s` seconds would be taken, changing nothing."""
        return time_s + self.slack_s >= (self.start_s if self.fps is None else self._due_s(self._next_due))

    def wants(self, time_s: float) -> bool:
        """Say whether the frame at `time_s` seconds is taken; saying yes moves on to the next due time."""
        if not self.is_due(time_s):
            return False
        if self.fps is None:
            return True
        time_s += self.slack_s
        k = math.floor((time_s - self.start_s) * self.fps) + 1
        # The product may round across a due time by one step; the comparison below is the rule, so settle by it.
        if self._due_s(k) <= time_s:
            k += 1
        elif k - 1 > self._next_due and self._due_s(k - 1) > time_s:
            k -= 1
        self._next_due = k
        return True

    def _due_s(self, k: int) -> float:
        assert self.fps is not None
        return self.start_s + k / self.fps
