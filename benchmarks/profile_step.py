"""Where the time of one engine step goes: the longest kernels, and host time beside device time.

    python -m benchmarks.profile_step --frames 16 --seconds 60

A model of the named sizes with random weights watches streams of moving Pocket World frames, one frame of each a step,
through steps prepared as a server prepares them. First warm steps, then the wall clock of steps each of which is waited
for, then of steps in a row, of which only the last is (a scheduler asks for the next tower before it waits for words),
then one step under the profiler, in which the stages are waited for. With `--python`, also which Python functions the
host's time goes to (which the profiler makes longer). Last one JSON line.
"""

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.profiling import functions, profiled
from onlooker.cli.timing import machine_card
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.models import SHAPES, load, random_model
from onlooker.world import make_episode

IN_A_ROW = 40
"""Steps of which only the last is waited for: of the first the device waits for the host."""


def main() -> None:
    """Profile, print, and say where it went."""
    options = _options()
    if options.shapes in SHAPES:
        model, weights = random_model(SHAPES[options.shapes], options.dtype, options.device), "random"
    else:
        model, weights = load(options.shapes, dtype=options.dtype, device=options.device), options.shapes
    card = machine_card(model, weights)
    print("\n".join(f"{name}: {value}" for name, value in card.items()), flush=True)
    methods: Any = {"encoder": options.encoder, "compressor": options.compressor, "memory": options.memory}
    engine = Engine(model, kv=options.kv, arithmetic=options.arithmetic, **methods)
    # Resized beforehand, as the scheduler does it, in worker threads.
    clips = [[engine.resize(frame.image) for frame in make_episode(n, "test", 16).frames(fps=1.0)] for n in range(4)]
    size = clips[0][0].shape
    if model.spec.device.type == "cuda":
        engine.prepare(most_frames=options.frames, most_tokens=options.frames * 212, picture=(size[0], size[1]))
    sessions = [engine.open() for _ in range(options.frames)]
    turn, spent, host = 0, [], []
    began = time.perf_counter()

    def arrivals() -> list[Any]:
        nonlocal turn
        turn += 1
        return [(session, Frame(clips[n % 4][(turn + n) % 16], float(turn))) for n, session in enumerate(sessions)]

    def step() -> tuple[float, float]:
        arrived = arrivals()
        engine.wait()
        start = time.perf_counter()
        engine.step(arrived)
        asked = time.perf_counter()
        engine.wait()
        return (time.perf_counter() - start) * 1000, (asked - start) * 1000

    for _ in range(options.warm):
        step()
    while len(spent) < options.steps and (len(spent) < 5 or time.perf_counter() - began < options.seconds):
        wall, asked = step()
        spent.append(wall)
        host.append(asked)
    start = time.perf_counter()
    for _ in range(IN_A_ROW):
        engine.step(arrivals())
    engine.wait()
    in_a_row = (time.perf_counter() - start) / IN_A_ROW * 1000
    result: dict[str, Any] = {
        "frames": options.frames,
        "steps": len(spent),
        "wall_ms": round(statistics.median(spent), 3),
        "host_ms": round(statistics.median(host), 3),
        "in_a_row_ms": round(in_a_row, 3),
    }
    print(f"\na step of {options.frames} frames: {result['wall_ms']} ms, of which the host {result['host_ms']} ms")
    print(f"in a row: {result['in_a_row_ms']} ms, {result['in_a_row_ms'] / options.frames:.3f} ms a frame")
    if options.python:
        functions(step)
    result |= profiled(engine.device, step) | {"stages_ms": _stages(engine, sessions, step)}
    card |= {"kv": options.kv, "arithmetic": options.arithmetic}
    print(json.dumps({"bench": "profile_step"} | card | result), flush=True)


def _stages(engine: Engine, sessions: Any, step: Any) -> dict[str, float]:
    """Milliseconds a frame by stage, when each is waited for."""
    engine.stages.profile = True
    before = [dict(session.totals.stage_s) for session in sessions]
    for _ in range(5):
        step()
    engine.stages.profile = False
    spent: dict[str, float] = {}
    for session, old in zip(sessions, before, strict=True):
        for name, seconds in session.totals.stage_s.items():
            spent[name] = spent.get(name, 0.0) + (seconds - old.get(name, 0.0)) / 5 / len(sessions) * 1000
    print("a frame, ms: " + ", ".join(f"{name} {ms:.3f}" for name, ms in spent.items()), flush=True)
    return {name: round(ms, 4) for name, ms in spent.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llava-onevision-7b", help=f"one of {', '.join(SHAPES)}, or a model")
    parser.add_argument("--frames", type=int, default=16, help="streams, one frame of each in a step")
    parser.add_argument("--encoder", default="stc_cacher:tau=0,recompute_ratio=0.25,refresh_share=none")
    parser.add_argument("--compressor", default="stc_pruner")
    parser.add_argument("--memory", default="sliding_window:window_tokens=5000")
    parser.add_argument("--warm", type=int, default=90, help="steps before anything is timed: the window is full then")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--python", action="store_true", help="also the host's time by Python function")
    parser.add_argument("--kv", default="", help="codecs by tier, such as device=int8")
    parser.add_argument("--arithmetic", default="model", help="model or fp8: of the language layers' products")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
