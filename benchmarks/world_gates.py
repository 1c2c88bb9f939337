"""What the levels of Pocket World must be able to show, on validation clips: a line for each gate.

    python -m benchmarks.world_gates --levels L2 L3 --model pocket-naive --out benchmarks/results/world_gates.jsonl

The exit code is 1 where a gate is shut: where what was seen rules it out. A small sample rules out little, so that
tables give the values.

Without `--model` only the gates that need no model are tried: balance against blind players, and the share of questions
that the last frame answers.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from onlooker.core.records import QueryRecord
from onlooker.evals.blind import blind_tables, guesses, last_frame_share
from onlooker.evals.item import Item
from onlooker.evals.suites import pocketworld

KEEP = 19
"""30 % of 64 tokens."""
BLIND, LAST_SHARE = 0.03, 0.20
DENSE, LAST, ORACLE, RANDOM = (0.80, 0.92), 0.40, 0.02, 0.10


def gate(level: str, name: str, value: float, good: bool, wanted: str) -> dict:
    """A line of the result."""
    return {"level": level, "gate": name, "value": round(value, 4), "wanted": wanted, "open": bool(good)}


def questions(level: str, limit: int) -> list[QueryRecord]:
    """The questions of validation clips."""
    return [query for item in pocketworld.items(limit, level=level, split="validation") for query in item.queries]


def of_the_world(level: str, limit: int) -> Iterator[dict]:
    """Gates that need no model."""
    asked = questions(level, limit)
    share = last_frame_share(asked)
    yield gate(level, "answerable from the last frame", share, share <= LAST_SHARE, f"at most {LAST_SHARE:.0%}")
    for table in blind_tables(guesses(asked)):
        # A small sample cannot tell three points from five: two standard errors are granted.
        good = table.gain - 2 * table.noise <= BLIND
        wanted = f"at most {BLIND:+.2f} over {table.constant:.3f} (noise {table.noise:.3f})"
        yield gate(level, f"blind: {table.name}", table.gain, good, wanted)


def of_a_model(level: str, limit: int, name: str, parallel: int) -> Iterator[dict]:
    """Gates that need a model."""
    from onlooker import models
    from onlooker.engine import Engine
    from onlooker.evals.oracle import OracleTokens
    from onlooker.evals.replay import Outcome, replay
    from onlooker.evals.score import by_task, difference, score

    model = models.load(name)
    items: list[Item] = list(pocketworld.items(limit, level=level, split="validation"))

    def run(label: str, compressor, memory: str = "full") -> list[Outcome]:
        began = time.perf_counter()
        outcomes = replay(Engine(model, encoder="full", compressor=compressor, memory=memory), items, parallel=parallel)
        found, tasks = score(outcomes), by_task(outcomes)
        spent = time.perf_counter() - began
        line = {task: round(one.accuracy, 3) for task, one in tasks.items()}
        print(json.dumps({"level": level, "run": label, "right": round(found.accuracy, 4), "tasks": line,
                          "seconds": round(spent)}), flush=True)  # fmt: skip
        return outcomes

    def of(name: str, low: float, value: float, high: float, least: float, most: float, wanted: str) -> dict:
        # A gate is shut where what was seen rules it out: its whole interval lies outside.
        return gate(level, name, value, low <= most and high >= least, wanted) | {"low": low, "high": high}

    outcomes = run("dense", "identity")
    dense = score(outcomes)
    yield of("dense", dense.low, dense.accuracy, dense.high, *DENSE, f"{DENSE[0]} to {DENSE[1]}")
    last = score(run("last frame", "identity", "last_frames:frames=1"))
    yield of("last frame", last.low, last.accuracy, last.high, 0.0, LAST, f"at most {LAST}")
    lost = difference(outcomes, run("oracle", OracleTokens(keep=KEEP)))
    yield of("dense minus oracle", lost.low, lost.gap, lost.high, -1.0, ORACLE, f"at most {ORACLE}")
    lost = difference(outcomes, run("random", f"random:keep={KEEP}"))
    yield of("dense minus random", lost.low, lost.gap, lost.high, RANDOM, 1.0, f"at least {RANDOM}")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", default=["L2", "L3"], help="levels to try")
    parser.add_argument("--model", nargs="*", default=[], help="models to try as well")
    parser.add_argument("--limit", type=int, default=400, help="questions put to a model")
    parser.add_argument("--blind-limit", type=int, default=4000, help="questions whose balance is looked at")
    parser.add_argument("--parallel", type=int, default=8, help="clips side by side")
    parser.add_argument("--out", type=Path, help="write the lines here too")
    given = parser.parse_args(argv)
    rows = []
    for level in given.levels:
        found = list(of_the_world(level, given.blind_limit))
        for name in given.model:
            found += [row | {"model": name} for row in of_a_model(level, given.limit, name, given.parallel)]
        for row in found:
            print(f"{'open' if row['open'] else 'SHUT'}  {row['level']} {row.get('model', ''):14} {row['gate']:32} "
                  f"{row['value']:+.3f}  wanted {row['wanted']}", flush=True)  # fmt: skip
        rows += found
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(json.dumps({"bench": "world_gates", "open": sum(row["open"] for row in rows), "gates": len(rows)}))
    return 0 if all(row["open"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
