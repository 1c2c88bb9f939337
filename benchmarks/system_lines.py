"""Proof lines of the systems page that are a gap between settings: both sides on the same questions, opened once.

    python -m benchmarks.system_lines --out rows.jsonl --workers 16
    python -m benchmarks.system_lines --show rows.jsonl

Each line of `LINES` names a system (`onlooker/core/systems.toml`), one of its proofs, and the settings whose answers
decide it. The rest is the same on both sides: the model (trained with none of these methods), no cache in the tower,
clips of a sealed name of the line's own. A line holds when the gap over the questions of its tasks is at least what it
claims and, for a claim to be better, its interval over clips lies above zero. A row carries every gap, the tokens a
second of video that each side read, and whether the line holds; `measured` in systems.toml points to it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onlooker.evals.compare import TOLERANCE, budget
from onlooker.evals.lines import line as told
from onlooker.evals.run_settings import RunSettings, from_dict
from onlooker.evals.runs import Run
from onlooker.evals.score import difference
from onlooker.evals.workers import results, run_grid

HELD = "last_frames:frames=64"
"""Holds the tokens of a whole clip, and reads what the refiner leaves of them when it is asked."""


@dataclass(frozen=True)
class Line:
    """One proof line: what is claimed of `ours` against each of `rivals`."""

    key: str
    number: int
    """Which of the system's proofs, from 1."""
    ours: dict[str, str]
    rivals: tuple[dict[str, str], ...]
    least: float
    """The least gap in accuracy; below zero where the line says "within"."""
    same: bool = False
    """The line claims no more than that no gap is seen."""
    of: float | None = None
    """Claimed instead of a gap: this share of the rival's accuracy."""
    tasks: tuple[str, ...] = ()
    """The tasks that count; all when empty."""
    equal_tokens: bool = True
    """Whether ours must not read more than the rival."""
    suite: str = "pocketworld"
    level: str = "L2"
    limit: int = 480
    fixed: dict[str, str] = field(default_factory=lambda: {"memory": HELD, "compressor": "identity"})


NAMED = ("named_shape", "named_place", "named_colour")
"""Questions about a name that only a comment gives."""
POOLED = "ppllava:frames=2,side=2,kernel="
LINES = (
    Line("ppllava", 1, {"refiner": POOLED + "fixed"}, ({"refiner": POOLED + "mean"},), 0.03, level="L3"),
    Line("ppllava", 2, {"refiner": POOLED + "published"}, ({"refiner": POOLED + "mean"},), 0.0, same=True, level="L3"),
    Line("tifre", 1, {"refiner": "tifre:ratio=0.25"}, ({"refiner": "tifre:ratio=0.25,fold=0"},), 0.02),
    Line(
        "b_vllm", 2, {"refiner": "b_vllm:ratio=0.14"},
        ({"compressor": "stc_pruner:keep=4"}, {"compressor": "identity", "fps": "0.0625"}), 0.03, level="L3",
    ),
    Line(
        "iva", 1, {"refiner": "iva:fine=2,coarse=2"}, ({},), 0.0, of=0.9, level="L3", equal_tokens=False,
    ),
    Line(
        "ts_llava", 1, {"gate": "thumbnail:every=8,side=2", "compressor": "thumbnail:every=8,sampled=8"},
        ({"compressor": "uniform:keep=15"},), 0.03, tasks=("before", "ever", "order", "since"),
        limit=960, fixed={"memory": "full"},
    ),
    Line(
        "video_rag", 1, {"side": "speech+comment"}, ({},), 0.2, tasks=NAMED, suite="pocketworld_stories", limit=1000,
        fixed={"memory": "video_rag", "compressor": "identity"}, equal_tokens=False,
    ),
    Line(
        "livibench", 1, {"side": "comment"}, ({},), 0.2, tasks=NAMED, suite="pocketworld_stories", limit=1000,
        fixed={"memory": "video_rag", "compressor": "identity"}, equal_tokens=False,
    ),
)  # fmt: skip


def runs(line: Line, model: str, limit: int | None, device: str) -> list[RunSettings]:
    """Ours first, then each rival."""
    shared = {
        "suite": line.suite, "limit": limit or line.limit, "level": line.level, "model": model, "device": device,
        "seeds": f"sealed:systems-{line.key.replace('_', '-')}-202611", "encoder": "full", "parallel": 16, **line.fixed,
    }  # fmt: skip
    made = []
    for place, side in enumerate((line.ours, *line.rivals)):
        values = shared | side | {"name": f"{line.key} {line.number}: {'rival' if place else 'ours'} {place}"}
        made.append(from_dict(values | {"fps": float(values.get("fps", 1.0))}))
    return made


def verdict(line: Line, ours: Run, rivals: Sequence[Run]) -> dict:
    """The row of a line."""
    chosen = [one for one in ours.outcomes if not line.tasks or one.query.task.split("/")[0] in line.tasks]
    if not chosen:
        raise SystemExit(f"{line.key} {line.number}: no question of {', '.join(line.tasks)} was asked")
    gaps = []
    for rival in rivals:
        gap = difference(chosen, rival.outcomes)
        wanted = {one.query.id for one in chosen}
        base = told(rival)
        theirs = [worth for outcome, worth in zip(_by_id(rival), base["worth"], strict=True)
                  if outcome.query.id in wanted and worth is not None]  # fmt: skip
        right = sum(theirs) / len(theirs)
        ratio = budget(ours).tokens_per_second / max(1e-9, budget(rival).tokens_per_second)
        row = {"rival": base["settings"], "rival_right": round(right, 4), "gap": round(gap.gap, 4),
               "low": round(gap.low, 4), "high": round(gap.high, 4), "p": round(gap.p, 4),
               "questions": gap.questions, "tokens_of_rival": round(ratio, 3)}  # fmt: skip
        row["holds"] = _holds(line, row)
        gaps.append(row)
    ran = told(ours)
    return {
        "key": line.key, "line": line.number, "holds": all(row["holds"] for row in gaps), "ours": ran["settings"],
        "ours_tokens_a_second": ran["tokens_a_second"], "ours_most_bytes": ran["most_bytes"], "gaps": gaps,
        "least": line.least, "of": line.of, "tasks": list(line.tasks),
        "commit": ran["commit"], "versions": ran["versions"], "card": ran["card"],
    }  # fmt: skip


def _by_id(run: Run) -> list:
    return sorted(run.outcomes, key=lambda outcome: outcome.query.id)


def _holds(line: Line, row: dict) -> bool:
    if line.equal_tokens and row["tokens_of_rival"] > 1 + TOLERANCE:
        return False
    if line.same:
        return row["p"] > 0.05
    if line.of is not None:
        return row["rival_right"] + row["gap"] >= line.of * row["rival_right"]
    return row["gap"] >= line.least and (line.least < 0 or row["low"] > 0)


def show(rows: Sequence[dict]) -> str:
    """A table of what was found."""
    out = ["| system | line | holds | right of the rival | gap | interval | questions | tokens of the rival's |",
           "|---|--:|---|--:|--:|---|--:|--:|"]  # fmt: skip
    for row in rows:
        for gap in row["gaps"]:
            out.append(
                f"| {row['key']} | {row['line']} | {'yes' if gap['holds'] else 'no'} | {gap['rival_right']:.3f} | "
                f"{gap['gap']:+.3f} | {gap['low']:+.3f} to {gap['high']:+.3f} | {gap['questions']} | "
                f"{gap['tokens_of_rival']:.2f} |"
            )
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="rows, one JSON object a line; added to")
    parser.add_argument("--show", type=Path, help="a table of the rows of a file, and nothing else")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these systems' lines (default: all)")
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="questions of each run, for a quick look")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args(argv)
    if given.show:
        print(show([json.loads(text) for text in given.show.read_text(encoding="utf-8").splitlines()]))
        return
    if given.out is None:
        parser.error("--out or --show")
    chosen = [line for line in LINES if not given.only or line.key in given.only]
    grids = [runs(line, given.model, given.limit, given.device) for line in chosen]
    flat = list(dict.fromkeys(run for grid in grids for run in grid))
    total, rows = sum(run.limit for run in flat), []
    with tempfile.TemporaryDirectory(prefix="onlooker-lines-") as folder:
        done = run_grid(
            flat, Path(folder), workers=given.workers,
            on_progress=lambda done: print(f"\r{done} of {total} questions", end="", file=sys.stderr, flush=True),
        )  # fmt: skip
        for one in done:
            if one.failure:
                print(f"{one.settings.label}: {one.failure}", flush=True)
        found = {run.settings.key: run for run in results(done)}
        for line, grid in zip(chosen, grids, strict=True):
            if all(run.key in found for run in grid):
                ours, *rivals = (found[run.key] for run in grid)
                rows.append(verdict(line, ours, rivals))
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(show(rows))


if __name__ == "__main__":
    main()
