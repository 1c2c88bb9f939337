"""Comparison at equal budget: measured tokens a second, intervals from resampling videos, ties called ties."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.evals.runs import Run
from onlooker.evals.score import Difference, Score, difference, score

TOLERANCE = 0.15
"""Budgets within this share of each other count as equal."""


@dataclass(frozen=True)
class Row:
    """One run in a table."""

    run: Run
    score: Score
    official: Score | None
    tokens_per_second: float
    """Tokens that entered the language model for each second of video: timestamps, kept tokens, and what was read again
    at questions. Measured, not nominal."""
    most_tokens_per_second: float
    """The same of the video with the most."""
    against: Difference | None = None
    """Accuracy minus that of the reference, question by question."""
    same_budget: bool = False


def tokens_per_second(run: Run) -> tuple[float, float]:
    """(over all videos, of the video with the most); zero for controls that read nothing."""
    rates = [
        (row["stats"].get("tokens_read", 0), row["stats"]["seconds"]) for row in run.videos if row["stats"]["seconds"]
    ]
    if not rates:
        return 0.0, 0.0
    return sum(t for t, _ in rates) / sum(s for _, s in rates), max(t / s for t, s in rates)


def compare(runs: Sequence[Run], reference: Run | None = None) -> list[Row]:
    """Rows sorted by lane, then by tokens a second. Each run is compared with `reference` (the first, when None)."""
    reference = reference or runs[0]
    base_rate, _ = tokens_per_second(reference)
    rows = []
    for run in runs:
        rate, most = tokens_per_second(run)
        published = score(run.outcomes, scorer="official", rejected=run.rejected)
        against = None if run.folder == reference.folder else difference(run.outcomes, reference.outcomes)
        equal = base_rate > 0 and abs(rate - base_rate) <= TOLERANCE * base_rate
        has_official = published.answered > 0
        rows.append(
            Row(
                run, score(run.outcomes, rejected=run.rejected), published if has_official else None, rate, most,
                against, equal,
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row.run.lane != "causal", row.run.lane, -row.tokens_per_second))


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
