"""Scores by question, by our scorer and the published one: what failed is wrong, and the answered are told apart."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onlooker.evals.benchmark import Mark, benchmark, mean
from onlooker.evals.matching import is_right
from onlooker.evals.replay import Outcome
from onlooker.evals.statistics import estimate, paired_gap

__all__ = [
    "Difference",
    "Score",
    "by",
    "by_task",
    "difference",
    "is_right",
    "marks",
    "official",
    "published",
    "score",
    "worth",
]


@dataclass(frozen=True)
class Score:
    """How a group of questions was answered, with 95 % intervals.

    A question with several marks (test points) is worth their mean, so that all questions weigh the same.
    """

    accuracy: float
    """Mean worth of all questions that were put; one that failed is worth nothing."""
    low: float
    high: float
    answered_only: float
    """The same over those that were answered."""
    macro: float
    """Mean over the categories' means: each category weighs the same."""
    macro_low: float
    macro_high: float
    answered: int
    """Questions with a reply that was marked."""
    asked: int
    """Questions of the suite: answered, failed, and rows of a benchmark that could not be put."""
    failed: int
    right: int
    """Questions of which every mark is whole."""
    marks: int
    """Marks of the answered questions."""

    @property
    def coverage(self) -> float:
        """Share of the questions that got a reply."""
        return self.answered / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Difference:
    """Accuracy of one run minus that of another over the questions put to both, with its 95 % interval."""

    gap: float
    low: float
    high: float
    questions: int
    p: float
    """How likely a gap as large is between equals (sign-flip test over videos)."""
    spread: float = math.nan
    """Standard error of the gap."""
    corrected_p: float | None = None
    """The same corrected for all comparisons of a table; None outside of one."""

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "tie" where the test, corrected if it is one of many, does not tell them apart."""
        likely = self.p if self.corrected_p is None else self.corrected_p
        return "tie" if not likely <= 0.05 else "better" if self.gap > 0 else "worse"

    def among(self, corrected_p: float) -> "Difference":
        """The same as one of several comparisons."""
        return dataclasses.replace(self, corrected_p=corrected_p)


def marks(outcome: Outcome, scorer: str = "strict") -> list[Mark]:
    """The marks of one question by the `strict` or the `official` scorer that count; none after a failure."""
    if outcome.failure or not outcome.replies:
        return []
    bench = benchmark(outcome.query.benchmark)
    marker = bench.strict if scorer == "strict" else bench.official
    return [mark for mark in marker(outcome.query, outcome.replies) if mark.counts] if marker else []


def worth(outcome: Outcome, scorer: str = "strict") -> float | None:
    """What the answer to one question is worth, 0 to 1: the mean of its marks, nothing after a failure.

    None where the scorer has no mark for such questions (a judge is needed).
    """
    if outcome.failure or not outcome.replies:
        return 0.0
    found = marks(outcome, scorer)
    return mean([mark.value for mark in found]) if found else None


def score(outcomes: Sequence[Outcome], *, scorer: str = "strict", rejected: int = 0) -> Score:
    """The score of a run or of a part of it; `rejected` rows of the benchmark count as asked, and are no answers.

    Intervals take whole videos as one, because questions on one video go together.
    """
    can_mark = scorer == "strict" or any(benchmark(outcome.query.benchmark).official for outcome in outcomes)
    put = [(outcome, value) for outcome in outcomes if can_mark and (value := worth(outcome, scorer)) is not None]
    answered = [found for outcome in outcomes if (found := marks(outcome, scorer))]
    values, videos = [value for _, value in put], [outcome.query.video for outcome, _ in put]
    whole = estimate(values, videos)
    macro = estimate(values, videos, [outcome.query.task for outcome, _ in put])
    return Score(
        whole.value, whole.low, whole.high, mean([mean([mark.value for mark in found]) for found in answered]),
        macro.value, macro.low, macro.high, answered=len(answered), asked=len(outcomes) + rejected,
        failed=sum(bool(o.failure or not o.replies) for o in outcomes),
        right=sum(all(mark.value >= 1.0 for mark in found) for found in answered),
        marks=sum(len(found) for found in answered),
    )  # fmt: skip


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
    """The benchmark's own averages (its published formula), by either scorer; empty where it has none.

    They are over marks, as published. A question that failed gets as many wrong marks as it would have had.
    """
    if not outcomes:
        return {}
    bench = benchmark(outcomes[0].query.benchmark)
    answered = [(outcome.query, outcome.replies) for outcome in outcomes if outcome.replies and not outcome.failure]
    return bench.summary(_by_task(outcomes, scorer)) | bench.together(answered) | _beside(outcomes, scorer)


def published(outcomes: Sequence[Outcome]) -> tuple[str, float] | None:
    """The number that papers print, by its name ("Total"), from the published scorer; None where there is none."""
    return benchmark(outcomes[0].query.benchmark).headline(_by_task(outcomes, "official")) if outcomes else None


def _beside(outcomes: Sequence[Outcome], scorer: str) -> dict[str, float]:
    """Means of the marks that are no part of the score, by task and what they are of ("Proactive Output, words")."""
    found: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        bench = benchmark(outcome.query.benchmark)
        marker = bench.strict if scorer == "strict" else bench.official
        for mark in (
            marker(outcome.query, outcome.replies) if marker and outcome.replies and not outcome.failure else ()
        ):
            if not mark.counts:
                found[f"{outcome.query.task}, {mark.what}"].append(mark.value)
    return {name: mean(values) for name, values in found.items()}


def _by_task(outcomes: Sequence[Outcome], scorer: str) -> dict[str, list[float]]:
    tasks: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        bench = benchmark(outcome.query.benchmark)
        if scorer == "official" and bench.official is None:
            continue
        failed = outcome.failure or not outcome.replies
        missing = [0.0] * max(1, len(outcome.query.test_points)) if failed else []
        tasks[outcome.query.task] += missing or [mark.value for mark in marks(outcome, scorer)]
    return {task: values for task, values in tasks.items() if values}


def difference(first: Sequence[Outcome], second: Sequence[Outcome], seed: int = 0) -> Difference:
    """Accuracy of `first` minus `second` over the questions put to both; one that failed is worth nothing."""
    theirs = {outcome.query.id: outcome for outcome in second}
    gaps, videos = [], []
    for outcome in first:
        other = theirs.get(outcome.query.id)
        ours, rival = worth(outcome), worth(other) if other else None
        if ours is not None and rival is not None:
            gaps.append(ours - rival)
            videos.append(outcome.query.video)
    found = paired_gap(gaps, videos, seed)
    return Difference(found.gap, found.low, found.high, len(gaps), found.p, found.spread)
