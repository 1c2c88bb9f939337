"""Figures of a report, as PNG bytes; matplotlib comes with the `eval` extra."""

import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from onlooker.core.errors import InputError
from onlooker.evals.compare import Row, latency_ms
from onlooker.evals.replay import Outcome
from onlooker.evals.score import Score, by, by_task

AGES_S = (2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 1800.0)
"""Ends of the classes of evidence by age, seconds."""
STAGES = ("preprocess", "encode", "project", "compress", "prefill", "memory")
MOST_LINES = 6
"""Runs drawn in figures with a line or a bar for each; more would be unreadable."""


def figures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Title to PNG. Figures without any data are left out."""
    chosen = few(rows)
    drawn = {
        "Accuracy against tokens kept": _budget(rows),
        "Accuracy against age of the evidence": _ages(chosen),
        "Accuracy by category": _categories(chosen),
        "Latency per stage": _latency(chosen),
        "Memory over time": _memory(chosen),
    }
    return {title: png for title, png in drawn.items() if png is not None}


def few(rows: Sequence[Row]) -> list[Row]:
    """At most `MOST_LINES` rows: those that read tokens first, spread over their order."""
    reading = [row for row in rows if row.tokens_per_second > 0] or list(rows)
    step = max(1.0, len(reading) / MOST_LINES)
    return [reading[int(k * step)] for k in range(min(MOST_LINES, len(reading)))]


def age_class(outcome: Outcome) -> str | None:
    """Which class the evidence of a question falls into, by the end of its newest span; None without evidence."""
    if not outcome.query.evidence:
        return None
    age_s = outcome.query.ask_time - max(end for _, end in outcome.query.evidence)
    limit = next((end for end in AGES_S if age_s < end), None)
    return f"under {_span(limit)}" if limit else f"{_span(AGES_S[-1])} and more"


def _span(seconds: float | None) -> str:
    assert seconds is not None
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _plots() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("figures need matplotlib", given="a report", do="pip install 'onlooker[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, format="png", dpi=110)
    _plots().close(figure)
    return out.getvalue()


def _budget(rows: Sequence[Row]) -> bytes | None:
    """One point for each run, with its interval; the tokens are measured."""
    points = [row for row in rows if row.score.answered]
    if not points:
        return None
    figure, axes = _plots().subplots(figsize=(8, 4.6))
    for number, row in enumerate(points):
        score, colour = row.score, f"C{number % 10}"
        spread = [[score.accuracy - score.low], [score.high - score.accuracy]]
        mark = "os^Dv<>PX*"[number // 10 % 10] if row.tokens_per_second else "x"
        x, y = [row.tokens_per_second], [100 * score.accuracy]
        axes.errorbar(x, y, [[100 * low for low in side] for side in spread], fmt=mark, color=colour, capsize=3,
                      label=row.run.settings.label)  # fmt: skip
    axes.set_xlabel("tokens entering the language model per second of video (measured)")
    axes.set_ylabel("accuracy, % (bars: 95 % interval)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _ages(rows: Sequence[Row]) -> bytes | None:
    order = [f"under {_span(end)}" for end in AGES_S] + [f"{_span(AGES_S[-1])} and more"]
    groups = {}
    for row in rows:
        dated = [outcome for outcome in row.run.outcomes if age_class(outcome)]
        groups[row.run.settings.label] = by(dated, lambda outcome: age_class(outcome) or "")
    present = [name for name in order if any(name in scores for scores in groups.values())]
    return _lines(groups, present, "age of the newest evidence at the question") if present else None


def _lines(groups: dict[str, dict[str, Score]], names: Sequence[str], label: str) -> bytes:
    figure, axes = _plots().subplots(figsize=(8, 4))
    for place, (run, scores) in enumerate(groups.items()):
        xs = [k for k, name in enumerate(names) if name in scores and scores[name].answered]
        found = [scores[names[k]] for k in xs]
        shifted = [x + 0.06 * (place - len(groups) / 2) for x in xs]
        spread = [[100 * (s.accuracy - s.low) for s in found], [100 * (s.high - s.accuracy) for s in found]]
        axes.errorbar(shifted, [100 * s.accuracy for s in found], spread, marker="o", capsize=2, label=run)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _categories(rows: Sequence[Row]) -> bytes | None:
    tasks = sorted({outcome.query.task for row in rows for outcome in row.run.outcomes})
    if not tasks:
        return None
    figure, axes = _plots().subplots(figsize=(max(8, 0.8 * len(tasks)), 4))
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        scores = by_task(row.run.outcomes)
        heights = [100 * scores[task].accuracy if task in scores else 0.0 for task in tasks]
        xs = [k + (place - (len(rows) - 1) / 2) * width for k in range(len(tasks))]
        axes.bar(xs, heights, width, label=row.run.settings.label)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8, rotation=30, ha="right")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _latency(rows: Sequence[Row]) -> bytes | None:
    found = [(row.run.settings.label, latency_ms(row.run)) for row in rows]
    found = [(label, stages) for label, stages in found if stages]
    if not found:
        return None
    figure, (left, right) = _plots().subplots(1, 2, figsize=(11, 0.45 * len(found) + 2.2), sharey=True)
    starts: dict[str, float] = defaultdict(float)
    labels = [label for label, _ in found]
    for stage in STAGES:
        widths = [stages.get(stage, (0.0, 0.0))[0] for _, stages in found]
        left.barh(labels, widths, left=[starts[label] for label in labels], label=stage)
        for label, width in zip(labels, widths, strict=True):
            starts[label] += width
    for place, (label, stages) in enumerate(found):
        median, late = stages.get("first token", (0.0, 0.0))
        right.barh([label], [median], color=f"C{place}")
        right.plot([late], [label], "k|", markersize=12)
    left.set_xlabel("ms per frame (median over videos)")
    right.set_xlabel("ms to the first token (median; mark: 95th percentile)")
    left.legend(fontsize=7, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    left.invert_yaxis()
    return _png(figure)


def _memory(rows: Sequence[Row]) -> bytes | None:
    lines = {}
    for row in rows:
        at: dict[float, list[float]] = defaultdict(list)
        for video in row.run.videos:
            for time_s, held in video["stats"].get("held", ()):
                at[time_s].append(held / 2**20)
        if at:
            lines[row.run.settings.label] = sorted((t, statistics.mean(values)) for t, values in at.items())
    if not lines:
        return None
    figure, axes = _plots().subplots(figsize=(8, 3.6))
    for label, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set_xlabel("stream time, s")
    axes.set_ylabel("MiB held per stream (mean)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)
