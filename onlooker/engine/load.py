"""What steps cost and how long things took: small running estimates that never grow with history."""

import math
from collections import deque

import numpy as np

REMEMBERED = 512
LEARNING_STEPS = 8
"""Steps before costs are believed."""
STALL = 3.0
"""A step that takes so many times what it should is a stall, unless the next one is as slow."""


class StepCost:
    """Seconds of a step as `base + frame * frames + question * (any question) + work * (works but the first)`, fitted
    to recent steps; works are those of lower priority, which are questions too.

    Least squares with exponential forgetting: four numbers and a 4 x 4 matrix, whatever has passed.

    A stall (a kernel is compiled, garbage collected, the machine elsewhere) says nothing of what a frame costs. One of
    0.6 s in a step of 28 frames, taken for their cost, made steps of 10 frames of all that followed, which hold no more
    than two thirds of the streams, and in which no step of 28 comes that would tell better. So a step far out of line
    counts only when the next one is, too.
    """

    FORGETTING = 0.98

    def __init__(self) -> None:
        self._moments, self._sums = np.eye(4) * 1e-3, np.zeros(4)
        self._cost = np.zeros(4)
        self.steps = 0
        self.steps_of_works = 0
        """Those with more than one work of lower priority."""
        self.stalls = 0
        """Steps that were put aside."""
        self._was_slow = False

    def note(self, frames: int, questions: int, seconds: float, works: int = 0) -> None:
        """Take in one step."""
        was_slow, expected = self._was_slow, self.expected_s(frames, questions) + self.work_s * max(0, works - 1)
        self._was_slow = self.steps >= LEARNING_STEPS and seconds > STALL * expected > 0
        if self._was_slow and not was_slow:
            self.stalls += 1
            return
        row = np.array([1.0, frames, float(questions > 0), max(0, works - 1)])
        self._moments = self._moments * self.FORGETTING + np.outer(row, row) + np.eye(4) * 1e-6
        self._sums = self._sums * self.FORGETTING + row * seconds
        self._cost = self._fitted()
        self.steps += 1
        self.steps_of_works += works > 1

    def _fitted(self) -> np.ndarray:
        """The costs that fit best. None is below zero: what would be is nothing, and the others are fitted without."""
        cost, left = np.zeros(4), np.arange(4)
        while len(left):
            some = np.linalg.solve(self._moments[np.ix_(left, left)], self._sums[left])
            if (some >= 0).all():
                cost[left] = some
                break
            left = np.delete(left, some.argmin())
        return cost

    @property
    def base_s(self) -> float:
        """Seconds of a step before its first frame."""
        return float(self._cost[0])

    @property
    def frame_s(self) -> float:
        """Seconds that one more frame adds."""
        return float(self._cost[1])

    @property
    def question_s(self) -> float:
        """Seconds that questions in flight add, however many."""
        return float(self._cost[2])

    @property
    def work_s(self) -> float:
        """Seconds that one more work of lower priority adds."""
        return float(self._cost[3])

    def expected_s(self, frames: int, questions: int) -> float:
        """Seconds that a step should take."""
        return self.base_s + self.frame_s * frames + self.question_s * (questions > 0)

    def frames_within(self, seconds: float, questions: int, most: int) -> int:
        """How many frames a step may take to end within so many seconds: at least one, at most `most`."""
        left = seconds - self.expected_s(0, questions)
        if self.frame_s <= 0:
            return most
        return int(min(most, max(1, left // self.frame_s)))

    def works_within(self, share: float, frames: int, questions: int, most: int, learnt: int) -> int:
        """How many works of lower priority may take part in a step: one, and as many more as add no more than a share
        of its time; two until so many steps have told what one more costs."""
        if self.steps_of_works < learnt:
            return min(2, most)
        expected = self.expected_s(frames, max(1, questions))
        if expected <= 0:
            return 1
        # One that seems to cost nothing, which is noise, counts as a hundredth of the step.
        return int(min(most, 1 + share * expected // max(self.work_s, 0.01 * expected)))


class Share:
    """Seconds of work per second of a clock, over about the last `over_s` seconds."""

    def __init__(self, over_s: float = 10.0) -> None:
        self._over_s = over_s
        self._sum, self._at = 0.0, 0.0

    def note(self, seconds: float, now: float) -> None:
        """Take in work that ended now."""
        self._sum, self._at = self._decayed(now) + seconds, now

    def at(self, now: float) -> float:
        """The share now."""
        return self._decayed(now) / self._over_s

    def _decayed(self, now: float) -> float:
        return self._sum * math.exp(min(0.0, (self._at - now) / self._over_s))


class Recent:
    """The last few hundred durations, for percentiles."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, seconds: float) -> None:
        """Take in one."""
        self._values.append(seconds)

    def percentile(self, percent: float) -> float | None:
        """Seconds that so many percent did not exceed; None before the first."""
        return float(np.percentile(self._values, percent)) if self._values else None
