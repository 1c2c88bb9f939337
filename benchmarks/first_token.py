"""How long until the first token of an answer after hours of stream, with what is recalled lying on the host.

    python -m benchmarks.first_token --model llava-onevision-7b --dtype bfloat16 --hours 1,2,4,8

Time is compressed: blocks of the size of a frame are written into the memory and parked by its plan as they would be
while watching, but filled with chance instead of being computed; before every measurement one true frame is watched.
Questions of different lengths are put one after the other, each alone on the device. `--topk` says how many blocks a
layer recalls, so that contexts on both sides of a boundary (8,192 rows) can be measured. With `--profile`, one question
of each size more under the profiler, and ten under Python's: kernels, copies, what the device waits for, functions.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.profiling import functions, profiled
from onlooker.cli.bench import load_for_timing
from onlooker.core import provenance
from onlooker.core.frame import Frame
from onlooker.engine import Engine, Session
from onlooker.world import make_episode

WORDS = "what was the person in the red coat carrying when the door at the back of the hall opened for the second time"


def fill(session: Session, noise: list[torch.Tensor], until_s: float, every_s: float, told_s: float = 10.0) -> None:
    """Blocks of chance, one every so many seconds of stream, up to a time; what the memory plans is carried out."""
    store, state, model = session.store, session.states["memory"], session.model
    positions, extent = model.place_text(noise[0].shape[3])
    time_s = store.spans[-1].end_s + every_s
    told = time.monotonic()
    while time_s < until_s:
        chunk = store.begin("vision", time_s, time_s, positions, extent)
        rows, given = chunk.rows(), noise[int(time_s / every_s) % len(noise)]
        assert rows is not None, "blocks lie as they are computed"
        for part, value in zip(
            (rows.own_keys, rows.own_raw, rows.own_values), (given[0], given[0], given[1]), strict=True
        ):
            part.copy_(value)
        span = chunk.seal()
        if session.memory.indexes:
            session.memory.index(span.id, store.raw_keys(span.id), state)
        store.apply(session.memory.plan(store.spans, state))
        time_s += every_s
        if time.monotonic() - told > told_s:
            told = time.monotonic()
            print(f"{time_s / 3600:.2f} hours of blocks", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", default="rekv:first=1,score=shares,recent=4", help="topk and window are added")
    parser.add_argument("--topk", default="64", help="blocks a layer recalls; several with commas")
    parser.add_argument("--window-tokens", type=int, default=15000)
    parser.add_argument("--kv", default="", help="for example host=int4")
    parser.add_argument("--hours", default="1,2,4,8", help="of stream, ascending")
    parser.add_argument("--fps", type=float, default=0.5)
    parser.add_argument("--frame-tokens", type=int, default=60)
    parser.add_argument("--questions", type=int, default=32, help="at each hour and size")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no hour after that")
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    began = time.monotonic()
    model, weights = load_for_timing(given.model, given.dtype, given.device)
    spec, sizes = model.spec, [int(size) for size in given.topk.split(",")]
    settings = f"topk={sizes[0]},window_tokens={given.window_tokens}"
    engine = Engine(model, encoder="full", compressor="stc_pruner", memory=f"{given.memory},{settings}", kv=given.kv)
    chance = torch.Generator(spec.device).manual_seed(0)
    shape = (2, spec.num_layers, spec.num_kv_heads, given.frame_tokens, spec.head_dim)
    noise = [torch.randn(shape, generator=chance, device=spec.device).to(spec.dtype) for _ in range(8)]
    image = next(iter(make_episode(0, "test", 4).frames(fps=1.0))).image
    session = engine.open()
    session.push(Frame(image, 0.0))
    print(f"{given.model} is there after {time.monotonic() - began:.0f} s", flush=True)
    card = torch.cuda.get_device_name() if spec.device.type == "cuda" else "cpu"
    for hours in (float(hour) for hour in given.hours.split(",")):
        if time.monotonic() - began > given.seconds:
            break
        filled = time.monotonic()
        fill(session, noise, hours * 3600 - 2, 1 / given.fps)
        engine.wait()
        session.push(Frame(image, hours * 3600))
        filled = time.monotonic() - filled
        for topk in sizes:
            memory = f"{given.memory},topk={topk},window_tokens={given.window_tokens}"
            with session.fork() as fork:
                fork.memory = Engine(model, memory=memory).memory
                for _ in range(3):  # whatever is made the first time
                    fork.ask(WORDS, max_new_tokens=1)
                taken, tokens = [], 0.0
                for number in range(given.questions):
                    words = WORDS.split()[: 4 + number % 18]
                    answer = fork.ask(" ".join(words) + "?", max_new_tokens=1)
                    taken.append(answer.timing.first_token_s)
                    tokens = answer.usage.context_tokens
                where: dict[str, Any] = {}
                if given.profile:
                    functions(lambda fork=fork: fork.ask(WORDS, max_new_tokens=1))
                    found = profiled(spec.device, lambda fork=fork: fork.ask(WORDS, max_new_tokens=1))
                    where = {"profile": {name: found[name] for name in ("busy_ms", "kernels", "copies")}}
            held = session.stats().memory_bytes
            row = {
                "bench": "first_token", "model": given.model, "weights": weights, "dtype": str(spec.dtype)[6:],
                "device": card, "memory": memory, "kv": given.kv, "hours": hours, "blocks": len(session.store.spans),
                "context_tokens": round(tokens), "questions": given.questions,
                "p50_ms": round(1000 * float(np.percentile(taken, 50)), 1),
                "p95_ms": round(1000 * float(np.percentile(taken, 95)), 1), "max_ms": round(1000 * max(taken), 1),
                "host_bytes": held["host_rows"], "device_bytes": sum(v for k, v in held.items() if k != "host_rows"),
                "fill_s": round(filled, 1), "commit": provenance.commit(), "versions": provenance.versions(),
            } | where  # fmt: skip
            print(json.dumps({key: value for key, value in row.items() if key != "versions"}), flush=True)
            if given.out:
                with Path(given.out).open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
