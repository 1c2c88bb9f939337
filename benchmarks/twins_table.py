"""Which choice of tokens wins on twins that learned with other gaps: `python -m benchmarks.twins_table --rows FILE`.

Rows are what `recipes.pocket.twins` wrote: the same sealed clips for every twin, mark by mark. Every mean is over the
seeds of a mix; intervals are Student's t over seeds: what another seed of the same continuation would give. A gap
between two choices is taken within each twin first. `--gates` gives the levels' gates instead.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.world_gates import DENSE, LAST, ORACLE, RANDOM

CHOICES = {"dense": "all tokens", "stc=19": "Pruner", "keep=19": "random", "uniform=19": "uniform",
           "oracle=19": "ground truth"}  # fmt: skip
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t at 1 to 9 degrees of freedom."""
PAIRS = (("stc=19", "keep=19"), ("stc=19", "uniform=19"), ("oracle=19", "stc=19"))


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of one value a seed, of ten at most; the interval is nan of a single one."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = STUDENT[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def told(values: Sequence[float], form: str) -> str:
    """A mean and its interval in a cell."""
    mean, low, high = over_seeds(values)
    return form.format(mean) + (f" ({form.format(low)} to {form.format(high)})" if len(values) > 1 else "")


def by_mix(rows: Sequence[dict], level: str) -> dict[str, list[dict[str, float]]]:
    """The scores of every twin of a mix, by setting."""
    out: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if "marks" in row and row["level"] == level:
            out.setdefault(row["mix"], []).append({name: scores["all"] for name, scores in row["sealed"].items()})
    return out


def choices(rows: Sequence[dict], level: str) -> list[str]:
    """The table of choices: shares first, then gaps within twins, in points."""
    head = ["mix", "twins", *CHOICES.values(), *(f"{CHOICES[a]} - {CHOICES[b]}" for a, b in PAIRS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for mix, twins in by_mix(rows, level).items():
        cells = [mix, str(len(twins))]
        cells += [told([twin[name] for twin in twins], "{:.3f}") for name in CHOICES]
        cells += [told([100 * (twin[a] - twin[b]) for twin in twins], "{:+.1f}") for a, b in PAIRS]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gates(rows: Sequence[dict]) -> list[str]:
    """The gates that need a model, by mix and level: means over seeds, in brackets the lowest and the highest."""
    head = ["mix", "level", "dense ({:.2f} to {:.2f})".format(*DENSE), f"last frame (at most {LAST:.2f})",
            f"dense - ground truth (at most {ORACLE:.2f})", f"dense - random (at least {RANDOM:.2f})",
            "holds all"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        if "validation" in row:
            found.setdefault((row["mix"], row["level"]), []).append(row["validation"])
    for (mix, level), twins in found.items():
        values = [[twin["dense"] for twin in twins], [twin["last=1"] for twin in twins],
                  [twin["dense"] - twin["oracle=19"] for twin in twins],
                  [twin["dense"] - twin["keep=19"] for twin in twins]]  # fmt: skip
        means = [statistics.fmean(each) for each in values]
        held = [DENSE[0] <= means[0] <= DENSE[1], means[1] <= LAST, means[2] <= ORACLE, means[3] >= RANDOM]
        cells = [f"{mean:.3f} ({min(each):.3f} to {max(each):.3f}){'' if good else ': missed'}"
                 for mean, each, good in zip(means, values, held, strict=True)]  # fmt: skip
        lines.append("| " + " | ".join([mix, level, *cells, "yes" if all(held) else "no"]) + " |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="lines of recipes.pocket.twins")
    parser.add_argument("--level", default="L2", help="level of the sealed clips")
    parser.add_argument("--gates", action="store_true", help="the gates of the levels instead")
    given = parser.parse_args(argv)
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()]
    print("\n".join(gates(rows) if given.gates else choices(rows, given.level)))


if __name__ == "__main__":
    main()
