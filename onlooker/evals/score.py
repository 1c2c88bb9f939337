"""Scores: strict matching beside the published one, coverage, and intervals from resampling whole videos."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onlooker.evals.benchmark import Mark, benchmark, mean
from onlooker.evals.matching import is_right
from onlooker.evals.replay import Outcome

RESAMPLES = 2000

__all__ = ["Difference", "Score", "by", "by_task", "difference", "is_right", "marks", "official", "score"]


@dataclass(frozen=True)
class Score:
    """Accuracy of a group of questions with its 95 % interval."""

    accuracy: float
    low: float
    high: float
    answered: int
    asked: int

    @property
    def coverage(self) -> float:
        """Share of the questions that got a reply. Accuracy is over these only."""
        return self.answered / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Difference:
    """Accuracy of one run minus that of another on what both answered, with the 95 % interval of paired resampling."""

    gap: float
    low: float
    high: float
    questions: int

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "tie" where the interval holds zero."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "tie"

    def __iter__(self):
        return iter((self.gap, self.low, self.high))


def marks(outcome: Outcome, scorer: str = "strict") -> list[Mark]:
    """The marks of one question by the `strict` or the `official` scorer that count; none after a failure."""
    if outcome.failure or not outcome.replies:
        return []
    bench = benchmark(outcome.query.benchmark)
    marker = bench.strict if scorer == "strict" else bench.official
    return [mark for mark in marker(outcome.query, outcome.replies) if mark.counts] if marker else []


def score(outcomes: Sequence[Outcome], seed: int = 0, *, scorer: str = "strict", rejected: int = 0) -> Score:
    """Accuracy over all marks of answered questions; `rejected` rows of the benchmark count as asked, not answered.

    The interval resamples videos, because questions on one video go together.
    """
    by_video: dict[str, list[float]] = defaultdict(list)
    answered = 0
    for outcome in outcomes:
        found = marks(outcome, scorer)
        answered += bool(found)
        if found:
            by_video[outcome.query.video] += [mark.value for mark in found]
    asked = len(outcomes) + rejected
    if not by_video:
        return Score(float("nan"), float("nan"), float("nan"), 0, asked)
    low, high = _interval(list(by_video.values()), seed)
    return Score(mean([v for values in by_video.values() for v in values]), low, high, answered, asked)


def by(outcomes: Sequence[Outcome], key: Callable[[Outcome], str], scorer: str = "strict") -> dict[str, Score]:
    """One score per group, sorted by name."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    return {name: score(group, scorer=scorer) for name, group in sorted(groups.items())}


def by_task(outcomes: Sequence[Outcome], scorer: str = "strict") -> dict[str, Score]:
    """One score per category, sorted by name."""
    return by(outcomes, lambda outcome: outcome.query.task, scorer)


def official(outcomes: Sequence[Outcome], scorer: str = "official") -> dict[str, float]:
    """The benchmark's own averages (its published formula), by either scorer; empty where it has none."""
    tasks: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        tasks[outcome.query.task] += [mark.value for mark in marks(outcome, scorer)]
    return benchmark(outcomes[0].query.benchmark).summary(tasks) if outcomes else {}


def difference(first: Sequence[Outcome], second: Sequence[Outcome], seed: int = 0) -> Difference:
    """Accuracy of `first` minus `second` on what both answered, with the 95 % interval of paired resampling."""
    theirs = {outcome.query.id: outcome for outcome in second}
    by_video: dict[str, list[float]] = defaultdict(list)
    questions = 0
    for outcome in first:
        other = theirs.get(outcome.query.id)
        ours, rival = marks(outcome), marks(other) if other else []
        if ours and rival:
            # Both have the same marks in the same order: those of the question's own test points.
            by_video[outcome.query.video] += [one.value - two.value for one, two in zip(ours, rival, strict=True)]
            questions += 1
    gaps = [gap for values in by_video.values() for gap in values]
    if not gaps:
        return Difference(float("nan"), float("-inf"), float("inf"), 0)
    low, high = _interval(list(by_video.values()), seed)
    return Difference(mean(gaps), low, high, questions)


def _interval(groups: Sequence[Sequence[float]], seed: int) -> tuple[float, float]:
    """The middle 95 % of the mean over all values when whole groups are drawn anew."""
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(seed).integers(0, len(groups), (RESAMPLES, len(groups)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
