"""How much of what the published Cacher loses an adapted model has back: `python -m benchmarks.cache_aware_table`.

    python -m recipes.pocket.evaluate --model onlooker/models/pocket_naive out/adapted --settings dense cacher=4:0.25 \\
        --sealed NAME --append rows.jsonl
    python -m benchmarks.cache_aware_table --rows rows.jsonl --given pocket_naive

The rows hold every mark of every setting, clip by clip. Recovered is (adapted under the Cacher - given under the
Cacher) / (given dense - given under the Cacher), of the same questions; its interval is the middle 95 % of 4,000 draws
of whole clips. Whether dense answers changed is a sign-flip test over clips, corrected over the table (Holm).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.arms_table import marks_of
from onlooker.evals.statistics import holm, paired_gap

DENSE, CACHER = "dense", "cacher=4:0.25"
DRAWS = 4000


def recovered(dense: str, cached: str, adapted: str, seed: int = 0) -> tuple[float, float, float]:
    """(share of the loss that is back, low, high) of marks as rows hold them. nan where nothing was lost."""
    sums = [_clip_sums(marks) for marks in (dense, cached, adapted)]
    lost, back = sums[0] - sums[1], sums[2] - sums[1]
    draw = np.random.default_rng(seed).integers(0, len(lost), (DRAWS, len(lost)))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = back[draw].sum(1) / lost[draw].sum(1)
        value = float(np.divide(back.sum(), lost.sum())) if lost.sum() else float("nan")
    shares = shares[np.isfinite(shares)]
    if not lost.sum() or not len(shares):
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(shares, [0.025, 0.975])
    return value, float(low), float(high)


def _clip_sums(marks: str) -> np.ndarray:
    return np.array([sum(map(int, clip)) for clip in marks.split(" ")], dtype=np.float64)


def compare(rows: Sequence[dict], given: str) -> list[dict]:
    """A line for each adapted model and level. Raises `SystemExit` where a row has no counterpart."""
    base = {row["level"]: row["marks"] for row in rows if row["arm"] == given}
    out, gaps = [], []
    for row in rows:
        if row["arm"] == given:
            continue
        if row["level"] not in base:
            raise SystemExit(f"error: no row of {given} at {row['level']}; try: evaluate both into one file")
        mine, theirs = row["marks"], base[row["level"]]
        if [len(clip) for clip in mine[DENSE].split(" ")] != [len(clip) for clip in theirs[DENSE].split(" ")]:
            raise SystemExit(f"error: {row['arm']} and {given} were asked other questions; try: the same --sealed name")
        share, low, high = recovered(theirs[DENSE], theirs[CACHER], mine[CACHER])
        marks, other = marks_of(mine[DENSE]), marks_of(theirs[DENSE])
        gap = paired_gap([float(m - o) for (_, m), (_, o) in zip(marks, other, strict=True)], [c for c, _ in marks])
        gaps.append(gap)
        right = {"given dense": theirs[DENSE], "given cacher": theirs[CACHER], "cacher": mine[CACHER],
                 "dense": mine[DENSE]}  # fmt: skip
        out.append({"model": row["arm"], "level": row["level"], "questions": len(marks)}
                   | {name: float(np.mean([mark for _, mark in marks_of(text)])) for name, text in right.items()}
                   | {"recovered": share, "low": low, "high": high, "gap": gap.gap, "gap_low": gap.low,
                      "gap_high": gap.high})  # fmt: skip
    for line, p in zip(out, holm([gap.p for gap in gaps]), strict=True):
        line |= {"p_holm": p, "verdict": "tie" if p > 0.05 else "better" if line["gap"] > 0 else "worse"}
    return [{key: round(v, 4) if isinstance(v, float) else v for key, v in line.items()} for line in out]


def markdown(lines: Sequence[dict]) -> str:
    """The table."""
    head = (
        "adapted",
        "level",
        "given, dense",
        "given, Cacher",
        "adapted, Cacher",
        "recovered (95 % interval)",
        "dense after",
    )
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        gap, low, high = (100 * line[name] for name in ("gap", "gap_low", "gap_high"))
        dense = f"{line['verdict']} ({gap:+.1f}, {low:+.1f} to {high:+.1f})"
        rows.append(
            f"| {line['model']} | {line['level']} | {line['given dense']:.3f} | {line['given cacher']:.3f} "
            f"| {line['cacher']:.3f} | {line['recovered']:.0%} ({line['low']:.0%} to {line['high']:.0%}) | {dense} |"
        )
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="file that evaluate --append wrote")
    parser.add_argument("--given", default="pocket_naive", help="name of the model that was adapted, as in the rows")
    parser.add_argument("--json", action="store_true", help="lines for programs instead of a table")
    given = parser.parse_args(argv)
    rows = [row for line in given.rows.read_text().splitlines() if "marks" in (row := json.loads(line))]
    if not any(row["arm"] == given.given for row in rows):
        raise SystemExit(f"error: no row of {given.given}: found {sorted({row['arm'] for row in rows})}")
    lines = compare(rows, given.given)
    print("\n".join(map(json.dumps, lines)) if given.json else markdown(lines))


if __name__ == "__main__":
    main()
