"""The pocket models' accuracy with every saving switched on and off, at equal token budgets, through the engine.

    python -m benchmarks.pocket_table --limit 1008 --out benchmarks/results/pocket_table_cpu_202611.jsonl

Held-out test clips of 24 s at 1 frame per second, 8 questions each, strict matching, each question weighs the same;
intervals take a clip's questions as one. Rows already in the output file are not run again, so that a long table can be
made in parts. `--seeds sealed:NAME` derives the clips from a name, to be opened once.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from onlooker import models
from onlooker.core.contracts import VideoModel
from onlooker.engine import Engine
from onlooker.evals import suites
from onlooker.evals.replay import replay
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.score import by_task, score

STC = "stc_published:interval=4,recompute_ratio=0.25"
PRUNER = "stc_pruner:keep_ratio=0.3"
DENSE = ("full", "identity", "full")
MAIN = (DENSE, (STC, PRUNER, "full"), (STC, "identity", "full"), ("full", PRUNER, "full"))
CONTROLS = (
    ("full", "random:keep_ratio=0.3", "full"),
    ("full", "uniform:keep_ratio=0.3", "full"),
    # 30 % of the tokens of 24 frames are the tokens of 7 whole frames.
    ("full", "identity", "last_frames:frames=7"),
    (STC, "random:keep_ratio=0.3", "full"),
    (STC, "uniform:keep_ratio=0.3", "full"),
    ("full", "stc_pruner:keep_ratio=0.3,score=gaussian", "full"),
)


KEYS = ("model", "encoder", "compressor", "memory", "asked", "seeds")
"""What tells rows apart."""


def measure(model: VideoModel, setting: Sequence[str], clips: RunSettings, parallel: int) -> dict:
    """One row: overall and by category, tokens read per frame, seconds."""
    encoder, compressor, memory = setting
    engine = Engine(model, encoder=encoder, compressor=compressor, memory=memory)
    began = time.perf_counter()
    outcomes = replay(engine, suites.items("pocketworld", clips.limit, clips.first_seed), parallel=parallel)
    replies = [o.reply for o in outcomes if o.reply]
    context = sum(r.meta["context_tokens"] for r in replies) / max(1, len(replies))
    tasks = {name: [round(v, 4) for v in (s.accuracy, s.low, s.high)] for name, s in by_task(outcomes).items()}
    return {
        "model": model.spec.name, "encoder": encoder, "compressor": compressor, "memory": memory,
        **dataclasses.asdict(score(outcomes)), "context_tokens": round(context),
        "suite": f"pocketworld test clips, {clips.clips}, 24 s, 1 fps",
        "tasks": tasks, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def stamp() -> dict:
    """Where and with what the numbers were made."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "hardware": f"{os.cpu_count()} cores {platform.machine()}", "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(), "commit": done.stdout.strip(),
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["pocket", "pocket-aware"])
    parser.add_argument("--limit", type=int, default=1008, help="questions of the main rows")
    parser.add_argument("--control-limit", type=int, default=1008, help="questions of the controls")
    parser.add_argument("--parallel", type=int, default=12, help="clips side by side")
    parser.add_argument("--extra", nargs="*", default=[], help="further encoders, each with and without the pruner")
    parser.add_argument("--seeds", default="", help="sealed:NAME; seeds from 0 when not given")
    parser.add_argument("--out", type=Path, default=Path("pocket_table.jsonl"), help="rows are added to this file")
    given = parser.parse_args()
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    extra = [(encoder, kept, "full") for encoder in given.extra for kept in ("identity", PRUNER)]
    jobs = [(s, given.limit) for s in (*MAIN, *extra)] + [(s, given.control_limit) for s in CONTROLS]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for setting, limit in jobs:
        for name in given.model:
            clips = RunSettings(limit=limit, seeds=given.seeds)
            key = (name, *setting, limit, given.seeds)
            if any(tuple(r.get(k, "") for k in KEYS) == key for r in done):
                continue
            row = measure(models.load(name), setting, clips, given.parallel) | {"seeds": given.seeds} | stamp()
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
    print(f"{'model':13} {'all':>6} {'95 % interval':16} {'context':>8}  setting")
    for r in done:
        span, setting = (
            f"[{r['low']:.3f}, {r['high']:.3f}]",
            " | ".join(r[k] for k in ("encoder", "compressor", "memory")),
        )
        print(f"{r['model']:13} {r['accuracy']:6.3f} {span:16} {r['context_tokens']:8}  {setting}")
    print(json.dumps({"bench": "pocket_table", "rows": len(done), "file": str(given.out)}))


if __name__ == "__main__":
    main()
