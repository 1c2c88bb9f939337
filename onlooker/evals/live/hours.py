"""Hours of commentary (Inf-Streams): every minute scored, and whether anything grows from first quarter to last.

Streams are watched in compressed time: a frame as soon as the one before is done, each a second of the stream.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onlooker.core import registry
from onlooker.evals.live.narration import NEWEST, Told, claims, marks, narrate, summed
from onlooker.evals.live.scenes import scene
from onlooker.evals.live.workers import load
from onlooker.world.episode import Split

STREAMING = "streaming_vlm:vision_s=46,sink_tokens=8,text_tokens=64"
"""StreamingVLM's memory: sinks, long text, short vision."""


@dataclass(frozen=True)
class Job:
    """Some hours of one stream."""

    model: str
    seed: int
    policy: str
    memory: str = STREAMING
    remembers: bool = True
    hours: float = 2.0
    device: str = "auto"
    split: Split = "test"
    prompt: str = NEWEST


def minutes(job: Job) -> Iterator[dict[str, Any]]:
    """A row for every minute, as it ends: what was said, the median time of a step in milliseconds, the bytes held."""
    show = scene(job.seed, job.split, 3600 * job.hours)
    model, policy = load(job.model, job.device), registry.make("response", job.policy)
    texts: list[tuple[float, str]] = []
    took: list[float] = []
    for at, said, seconds, held in narrate(model, show, policy, job.remembers, memory=job.memory, prompt=job.prompt):
        texts += [(at, said)] if said is not None else []
        took.append(seconds)
        if len(took) == 60:
            step_ms = 1000 * float(np.median(took))
            yield {"minute": int(at // 60), "step_ms": step_ms, "bytes": held, "texts": texts}
            texts, took = [], []


def scored(rows: Sequence[Mapping[str, Any]], job: Job) -> list[Told]:
    """Every minute: its events told or not, its texts right or not."""
    events = [e for e in scene(job.seed, job.split, 3600 * job.hours).arrivals if e.start_s < 60 * len(rows)]
    claimed = claims([(float(at), str(said)) for row in rows for at, said in row["texts"]])
    found = marks(claimed, events)
    out = []
    for minute in range(len(rows)):
        mine = [mark for (at, _), mark in zip(claimed, found, strict=True) if at // 60 == minute]
        out.append(summed(mine, sum(event.start_s // 60 == minute for event in events), 60.0))
    return out


def quarters(rows: Sequence[Mapping[str, Any]], job: Job) -> list[dict[str, Any]]:
    """What was told in each quarter, its median step, and the most bytes held at the end of a minute."""
    told, out, size = scored(rows, job), [], max(1, len(rows) // 4)
    for number in range(4):
        part = slice(number * size, (number + 1) * size)
        if not rows[part]:
            break
        step = float(np.median([row["step_ms"] for row in rows[part]]))
        held = max(row["bytes"] for row in rows[part])
        out.append({"quarter": number + 1, "step_ms": step, "bytes": held} | sum(told[part], Told()).row())
    return out
