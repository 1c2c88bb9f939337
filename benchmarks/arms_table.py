"""The published table of the three arms: every setting on sealed clips of every level, tests corrected over the table.

    python -m benchmarks.arms_table --rows benchmarks/results/pocket_arms_h100_202611.jsonl

The rows are the sealed looks that the recipe wrote (`recipes.pocket.train --sealed NAME`, `recipes.pocket.evaluate
--sealed NAME`): every mark of every setting, clip by clip. All settings of an arm at a level are compared with its own
dense run, question by question, by flipping the signs of whole clips; p-values are Holm's over the whole table.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from onlooker.evals.statistics import detectable, estimate, holm, paired_gap
from recipes.pocket.export import NAMES

DENSE = "dense"


def marks_of(text: str) -> list[tuple[str, int]]:
    """(clip, right) of every mark; clips stand apart by spaces."""
    return [(str(clip), int(mark)) for clip, marks in enumerate(text.split(" ")) for mark in marks]


def compare(rows: Sequence[dict], against: str = DENSE) -> list[dict]:
    """One line for each arm, level and setting: share with its interval, and the gap to `against` with its verdict."""
    out, gaps = [], []
    for row in rows:
        base = marks_of(row["marks"][against])
        for setting, text in row["marks"].items():
            marks = marks_of(text)
            assert [clip for clip, _ in marks] == [clip for clip, _ in base], "the same questions in the same order"
            clips = [clip for clip, _ in marks]
            share = estimate([float(mark) for _, mark in marks], clips)
            line = {"model": NAMES[row["arm"]], "level": row["level"], "setting": setting, "questions": len(marks),
                    "clips": len(set(clips)), "right": share.value, "low": share.low, "high": share.high}  # fmt: skip
            if setting != against:
                pairs = [float(mark - other) for (_, mark), (_, other) in zip(marks, base, strict=True)]
                found = paired_gap(pairs, clips)
                gaps.append((line, found))
                line |= {"gap": found.gap, "gap_low": found.low, "gap_high": found.high, "p": found.p,
                         "spread": found.spread}  # fmt: skip
            out.append(line)
    corrected = holm([found.p for _, found in gaps])
    for (line, found), p in zip(gaps, corrected, strict=True):
        line["p_holm"] = p
        line["verdict"] = "tie" if p > 0.05 else "better" if found.gap > 0 else "worse"
    return [{key: round(v, 4) if isinstance(v, float) else v for key, v in line.items()} for line in out]


def markdown(lines: Sequence[dict]) -> str:
    """One row a setting, one column for each arm and level; a star where it differs from dense."""
    columns = list(dict.fromkeys((line["model"], line["level"]) for line in lines))
    head = ["setting", *(f"{model} {level}" for model, level in columns)]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    found = {(line["model"], line["level"], line["setting"]): line for line in lines}
    for setting in dict.fromkeys(line["setting"] for line in lines):
        cells = []
        for model, level in columns:
            line = found[model, level, setting]
            star = "" if line.get("verdict", "tie") == "tie" else " *"
            cells.append(f"{line['right']:.3f} ({line['low']:.3f} to {line['high']:.3f}){star}")
        rows.append(f"| `{setting}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="file with the sealed looks")
    parser.add_argument("--against", default=DENSE, help="the setting that all others are compared with")
    parser.add_argument("--json", action="store_true", help="lines for programs instead of a table")
    given = parser.parse_args(argv)
    rows = [row for line in given.rows.read_text().splitlines() if "sealed" in (row := json.loads(line))]
    lines = compare(rows, given.against)
    if given.json:
        print("\n".join(json.dumps(line) for line in lines))
        return
    print(markdown(lines))
    tests = sum("p_holm" in line for line in lines)
    fewest, most = (pick(line["questions"] for line in lines) for pick in (min, max))
    what = "dense run" if given.against == DENSE else f"run with {given.against}"
    print(f"\n* differs from the same model's {what}, p below .05 after Holm over {tests} tests; "
          f"{fewest} to {most} questions on {lines[0]['clips']} clips a level")  # fmt: skip
    gap = detectable(statistics.median(line["spread"] for line in lines if "spread" in line), tests)
    print(f"A true gap of {100 * gap:.1f} points is seen in four tables of five; a smaller one may pass for a tie.")


if __name__ == "__main__":
    main()
