"""Telling the time in buckets of age, read off a frozen model by ridge regression (Grounded-VideoLLM's question).

    python -m benchmarks.age_buckets --device cpu --out rows.jsonl

Grounded-VideoLLM (arXiv 2410.03290) teaches a model discrete tokens for relative times. A stream has no end to be
relative to, so here a time is an age: one of 32 buckets, of a frame each up to 24 and wider ones behind. Nothing of the
model is trained: its state behind a "when" question, by dense attention over all tokens of a clip, is mapped to the
buckets by a linear map that is fitted on other clips (its ridge chosen on a tenth of those). Beside it, on the same
questions, the clock time that the model writes. Right is the very second, the error in frames at one a second.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onlooker import models
from onlooker.core import provenance
from onlooker.core.contracts import VideoModel
from onlooker.engine import Engine
from onlooker.evals import flow
from onlooker.evals.matching import is_right
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.statistics import estimate, paired_gap
from onlooker.world import make_episode

REALISES = ("grounded_videollm",)
CLIP_S, A_CLIP, EXACT = 24.0, 6, 24
WIDER = (24, 28, 32, 40, 48, 64, 96, 128)
"""Where the buckets behind the exact ones begin, in frames."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def bucket_of(age: int) -> int:
    """The bucket of an age in frames."""
    return age if age < EXACT else EXACT - 1 + sum(age >= first for first in WIDER)


def asked(engine: Engine, seed: int, split: Any, with_text: bool) -> list[dict[str, Any]]:
    """The "when" questions of a clip: the state behind each, float32 `[dim]`, its age and what the model writes."""
    episode, told = make_episode(seed, split, duration_s=CLIP_S), []
    frames = list(episode.frames(fps=1.0, size=(128, 128)))
    for query in episode.questions(A_CLIP, rng_seed=0, tasks=("when",)):
        seen = [frame for frame in frames if frame.time_s <= query.ask_time]
        sample = flow.sample_of(engine, seen, query.question)
        row = {"clip": str(seed), "age": round(seen[-1].time_s - query.meta["seconds"])}
        row["state"] = flow.states_of(engine.model, sample, {})[-1].float().cpu()
        if with_text:
            said = engine.model.decode_text(flow.greedy(engine.model, sample)).strip()
            row["text"] = float(is_right(query, said))
        told.append(row)
    return told


def fitted(states: Tensor, buckets: Tensor, ridge: float) -> Tensor:
    """A linear map of states `[n, dim + 1]` to buckets, `[dim + 1, 32]`, in float64."""
    wanted = torch.nn.functional.one_hot(buckets, EXACT + len(WIDER)).double()
    spread = states.T @ states
    return torch.linalg.solve(spread + ridge * spread.trace() / len(spread) * torch.eye(len(spread)), states.T @ wanted)


def evened(rows: list[dict[str, Any]], like: Tensor) -> Tensor:
    """States less the mean of `like` in steps of its deviations, and a one, float64 `[n, dim + 1]`."""
    states = torch.stack([row["state"] for row in rows]).double()
    states = (states - like.mean(0)) / like.std(0).clamp_min(1e-6)
    return torch.cat([states, torch.ones(len(states), 1, dtype=torch.float64)], dim=1)


def judged(model: VideoModel, learn: list[dict[str, Any]], told: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: what buckets and texts tell on the clips that were not learned from."""
    clips = sorted({row["clip"] for row in learn})
    random.Random(0).shuffle(clips)
    held = set(clips[: max(1, len(clips) // 10)])
    parts = [row for row in learn if row["clip"] not in held], [row for row in learn if row["clip"] in held]
    buckets = [torch.tensor([bucket_of(row["age"]) for row in part]) for part in (*parts, learn, told)]

    def right(ridge: float) -> float:
        like = torch.stack([row["state"] for row in parts[0]]).double()
        inner, outer = (evened(part, like) for part in parts)
        return float(((outer @ fitted(inner, buckets[0], ridge)).argmax(1) == buckets[1]).double().mean())

    ridge = max(RIDGES, key=right)
    like = torch.stack([row["state"] for row in learn]).double()
    found = (evened(told, like) @ fitted(evened(learn, like), buckets[2], ridge)).argmax(1)
    hits, names = (found == buckets[3]).double().tolist(), [row["clip"] for row in told]
    value, texts = estimate(hits, names), [row["text"] for row in told]
    gap = paired_gap([a - b for a, b in zip(hits, texts, strict=True)], names)
    return {
        "bench": "age_buckets", "questions": len(told), "clips": len(set(names)), "learned_on": len(learn),
        "ridge": ridge, "right": round(value.value, 4), "low": round(value.low, 4), "high": round(value.high, 4),
        "error_frames": round(float((found - buckets[3]).abs().double().mean()), 3),
        "written": round(sum(texts) / len(texts), 4), "gap": round(gap.gap, 4), "gap_low": round(gap.low, 4),
        "gap_high": round(gap.high, 4), "p": round(gap.p, 5), "device": str(model.spec.device),
        "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--learn", type=int, default=160, help="clips of training that the map is fitted on")
    parser.add_argument("--clips", type=int, default=32, help="sealed clips that are told of")
    parser.add_argument("--out", type=Path, required=True, help="the row is added to it")
    given = parser.parse_args()
    model = models.load(given.model, dtype="float32", device=given.device)
    engine = Engine(model, encoder="full", compressor="identity", memory="last_frames:frames=100000", passes="plain")
    first = RunSettings(seeds="sealed:systems-grounded-videollm-202611").first_seed
    told: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for split, begin, count in (("train", 0, given.learn), ("test", first, given.clips)):
        for number in range(count):
            told[split] += asked(engine, begin + number, split, with_text=split == "test")
            print(f"{split} clip {number + 1} of {count}", flush=True)
    row = judged(model, told["train"], told["test"]) | {"model": given.model, "frames": int(CLIP_S)}
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
