"""Scores: strict matching, coverage, and intervals from resampling whole videos."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onlooker.core.records import QueryRecord
from onlooker.evals.replay import Outcome

RESAMPLES = 2000


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


def is_right(query: QueryRecord, text: str) -> bool:
    """Strict: the reply is the answer, apart from case, outer spaces and a final full stop.

    A clock time is right within the query's tolerance (seconds).
    """
    said, meant = _normal(text), _normal(query.answer)
    if said == meant:
        return True
    if query.tolerance > 0 and (meant_s := _clock(meant)) is not None:
        said_s = _clock(said)
        return said_s is not None and abs(said_s - meant_s) <= query.tolerance
    return False


def score(outcomes: Sequence[Outcome], seed: int = 0) -> Score:
    """Accuracy over answered questions; the interval resamples videos, because questions on one video go together."""
    answered = [o for o in outcomes if o.reply is not None]
    if not answered:
        return Score(float("nan"), float("nan"), float("nan"), 0, len(outcomes))
    by_video: dict[str, list[bool]] = defaultdict(list)
    for o in answered:
        by_video[o.query.video].append(is_right(o.query, o.reply.text))  # pyright: ignore[reportOptionalMemberAccess]
    right = np.array([sum(r) for r in by_video.values()])
    total = np.array([len(r) for r in by_video.values()])
    drawn = np.random.default_rng(seed).integers(0, len(right), (RESAMPLES, len(right)))
    spread = right[drawn].sum(1) / total[drawn].sum(1)
    low, high = np.percentile(spread, [2.5, 97.5])
    return Score(float(right.sum() / total.sum()), float(low), float(high), len(answered), len(outcomes))


def by_task(outcomes: Sequence[Outcome]) -> dict[str, Score]:
    """One score per category, sorted by name."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for o in outcomes:
        groups[o.query.task].append(o)
    return {task: score(group) for task, group in sorted(groups.items())}


def difference(first: Sequence[Outcome], second: Sequence[Outcome], seed: int = 0) -> tuple[float, float, float]:
    """Accuracy of `first` minus `second` on what both answered, with the 95 % interval of paired resampling."""
    theirs = {o.query.id: o for o in second if o.reply is not None}
    by_video: dict[str, list[int]] = defaultdict(list)
    for o in first:
        other = theirs.get(o.query.id)
        if o.reply is not None and other is not None and other.reply is not None:
            gap = int(is_right(o.query, o.reply.text)) - int(is_right(o.query, other.reply.text))
            by_video[o.query.video].append(gap)
    gaps = np.array([sum(g) for g in by_video.values()])
    total = np.array([len(g) for g in by_video.values()])
    drawn = np.random.default_rng(seed).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[drawn].sum(1) / total[drawn].sum(1), [2.5, 97.5])
    return float(gaps.sum() / total.sum()), float(low), float(high)


def _normal(text: str) -> str:
    return " ".join(text.strip().rstrip(".").lower().split())


def _clock(text: str) -> int | None:
    found = re.fullmatch(r"\[?(\d+):(\d\d)\]?", text)
    return int(found[1]) * 60 + int(found[2]) if found else None
