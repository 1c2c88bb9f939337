"""Comparison at equal budget: measured tokens a second, paired tests corrected over the table, ties called ties."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.evals.runs import Run
from onlooker.evals.score import Difference, Score, difference, published, score
from onlooker.evals.statistics import detectable, holm

TOLERANCE = 0.15
"""Budgets within this share of each other count as equal."""


@dataclass(frozen=True)
class Budget:
    """What a run took, measured over all of its videos, but for the arithmetic, which is counted."""

    tokens_per_second: float
    """Tokens that entered the language model for each second of video: timestamps, kept tokens, and what was read again
    at questions. Measured, not nominal."""
    most_tokens_per_second: float
    """The same of the video with the most."""
    vision_gflop_per_second: float
    """Arithmetic of the vision tower for each second of video, counted from the frames that were encoded."""
    most_bytes: int
    """The most that one stream held."""


@dataclass(frozen=True)
class Row:
    """One run in a table."""

    run: Run
    score: Score
    published: tuple[str, float] | None
    """The number that papers print for this benchmark, and what they call it."""
    budget: Budget
    against: Difference | None = None
    """Accuracy minus that of the reference, question by question."""
    same_budget: bool = False

    @property
    def tokens_per_second(self) -> float:
        """See `Budget`."""
        return self.budget.tokens_per_second


def budget(run: Run) -> Budget:
    """What a run took; zeros for controls that read nothing."""
    stats = [row["stats"] for row in run.videos if row["stats"]["seconds"]]
    seconds = sum(one["seconds"] for one in stats)
    if not stats:
        return Budget(0.0, 0.0, 0.0, 0)
    return Budget(
        sum(one.get("tokens_read", 0) for one in stats) / seconds,
        max(one.get("tokens_read", 0) / one["seconds"] for one in stats),
        sum(one.get("vision_flop", 0.0) for one in stats) / seconds / 1e9,
        max(max([one.get("memory_bytes", 0), *(held for _, held in one.get("held", ()))]) for one in stats),
    )


def compare(runs: Sequence[Run], reference: Run | None = None) -> list[Row]:
    """Rows sorted by lane, then by tokens a second. Each run is compared with `reference` (the first, when None); the
    tests are corrected for their number (Holm)."""
    reference = reference or runs[0]
    base_rate = budget(reference).tokens_per_second
    others = [run for run in runs if run.folder != reference.folder]
    gaps = [difference(run.outcomes, reference.outcomes) for run in others]
    corrected = holm([gap.p for gap in gaps])
    against = {run.folder: gap.among(p) for run, gap, p in zip(others, gaps, corrected, strict=True)}
    rows = []
    for run in runs:
        took = budget(run)
        equal = base_rate > 0 and abs(took.tokens_per_second - base_rate) <= TOLERANCE * base_rate
        whole = score(run.outcomes, rejected=run.rejected)
        rows.append(Row(run, whole, published(run.outcomes), took, against.get(run.folder), equal))
    return sorted(rows, key=lambda row: (row.run.lane != "causal", row.run.lane, -row.tokens_per_second))


def power_note(rows: Sequence[Row]) -> str:
    """What the table can tell apart, in a sentence; empty where nothing is compared."""
    found = [row.against for row in rows if row.against is not None and row.against.questions]
    if not found:
        return ""
    spread = statistics.median(one.spread for one in found)
    gap = detectable(spread, tests=len(found))
    return (
        f"A true gap of {100 * gap:.1f} points from the reference is seen in four tables of five like this one "
        f"(median over its {len(found)} comparisons, p corrected by Holm); a smaller one may pass for a tie."
    )


def latency_ms(run: Run) -> dict[str, tuple[float, float]]:
    """Stage to (median, 95th percentile) over videos, in milliseconds: stages per frame, answers per question."""
    stages: dict[str, list[float]] = {}
    for row in run.videos:
        frames = max(1, row["stats"].get("frames", 1))
        for stage, spent in row["stats"].get("stage_s", {}).items():
            stages.setdefault(stage, []).append(1000 * spent / frames)
    for outcome in run.outcomes:
        for reply in outcome.replies:
            for name, spent in reply.latency.items():
                label = "first token" if name == "first" else "whole answer"
                stages.setdefault(label, []).append(1000 * spent)
    return {name: (statistics.median(values), _percentile(values, 0.95)) for name, values in stages.items()}


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
