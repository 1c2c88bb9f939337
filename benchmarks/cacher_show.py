"""Tables of the rows that `benchmarks.cacher_table` writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a file of rows has."""
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def show(out: Path) -> None:
    """Tables of what the file has."""
    rows = rows_of(out)
    for part in ("answers", "long"):
        mine = [row for row in rows if row["part"] == part]
        for over in sorted({_family(row) for row in mine}):
            print(f"\n{part}: {over}\n")
            print("| variant | arithmetic | after the first | refreshed | error | right | minus dense | worst tasks |")
            print("|---|--:|--:|--:|--:|---|---|---|")
            _show_answers([row for row in mine if _family(row) == over])
    films = [row for row in rows if row["part"] == "footage"]
    for model in sorted({row["over"].split()[0] for row in films}):
        _show_films(model, [row for row in films if row["over"].split()[0] == model])


def _show_films(model: str, films: Sequence[dict[str, Any]]) -> None:
    print(f"\nfootage, {model}: error against dense (arithmetic)\n")
    columns = sorted({(row["clip"], row["fps"]) for row in films})
    print("| variant | " + " | ".join(f"{clip} {fps:g}" for clip, fps in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for variant in dict.fromkeys(row["variant"] for row in films):
        cells = {(r["clip"], r["fps"]): r for r in films if r["variant"] == variant}
        texts = [f"{cells[c]['error']:.3f} ({cells[c]['arithmetic']:.2f})" if c in cells else "" for c in columns]
        print(f"| {variant} | " + " | ".join(texts) + " |")


def _family(row: dict[str, Any]) -> str:
    return " ".join(word for word in row["over"].split() if ".." not in word)


def _show_answers(rows: list[dict[str, Any]]) -> None:
    right: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        right.setdefault(row["variant"], {}).update(row["right"])
    dense = right.get("full", {})
    for variant, clips in sorted(right.items(), key=lambda one: -_mean_of(rows, one[0], "arithmetic")):
        marked = {clip: [v for task in tasks.values() for v in task] for clip, tasks in clips.items()}
        whole = _interval([np.array(v) for v in marked.values()])
        both = [clip for clip in marked if clip in dense]
        gaps = [np.array(marked[c]) - np.array([v for task in dense[c].values() for v in task]) for c in both]
        gap = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * v for v in _interval(gaps))) if gaps else ""
        tasks: dict[str, list[float]] = {}
        for clip in clips.values():
            for task, values in clip.items():
                tasks.setdefault(task, []).extend(values)
        worst = sorted((float(np.mean(v)), task) for task, v in tasks.items())[:3]
        means = [
            _mean_of(rows, variant, name) for name in ("arithmetic", "arithmetic_after_first", "refreshed", "error")
        ]
        print(
            f"| {variant} | " + " | ".join(f"{value:.3f}" for value in means)
            + f" | {whole[0]:.3f} ({whole[1]:.3f} to {whole[2]:.3f}), {len(clips)} clips | {gap} | "
            + ", ".join(f"{task} {value:.2f}" for value, task in worst) + " |"
        )  # fmt: skip


def _mean_of(rows: Sequence[dict[str, Any]], variant: str, name: str) -> float:
    mine = [row for row in rows if row["variant"] == variant]
    return float(np.average([row[name] for row in mine], weights=[row["frames"] for row in mine]))


def _interval(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean and the middle 95 % of it when whole clips are drawn anew."""
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (2000, len(groups)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)
