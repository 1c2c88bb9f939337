"""Where the time goes while many streams are served: a piece of a trial of `onlooker bench streams` under the profiler.

    python -m benchmarks.profile_serving --streams 250 --kv device=int4

Frames and questions come to a scheduler as in a trial, with threads that resize and the next tower asked for ahead.
First a few seconds as they are, then a piece of a second under the profiler (which makes the host slower): device time
by kernel, host time by operator, and when the device had nothing to do. Last one JSON line.
"""

import argparse
import dataclasses
import json
from typing import Any

from benchmarks.profiling import functions, profiled
from onlooker.cli.crowd import Crowd, Run
from onlooker.cli.loads import pictures
from onlooker.cli.timing import machine_card
from onlooker.cli.trial import Demand
from onlooker.engine import Engine
from onlooker.engine.pauses import Pauses, rarely_collected
from onlooker.engine.preparing import prepare
from onlooker.models import SHAPES, load, random_model

MOST_FILLING = 2000


def main() -> None:
    """Serve, profile, print."""
    options = _options()
    if options.shapes in SHAPES:
        model, weights = random_model(SHAPES[options.shapes], options.dtype, options.device), "random"
    else:
        model, weights = load(options.shapes, dtype=options.dtype, device=options.device), options.shapes
    card = machine_card(model, weights) | {"kv": options.kv, "arithmetic": options.arithmetic}
    card["singles"] = options.singles
    print("\n".join(f"{name}: {value}" for name, value in card.items()), flush=True)
    methods: Any = {"encoder": options.encoder, "compressor": options.compressor, "memory": options.memory}
    engine = Engine(model, kv=options.kv, arithmetic=options.arithmetic, **methods)
    if options.singles and (scratch := getattr(engine.passes, "scratch", None)) is not None:
        scratch.singles = True
    shown = pictures(24, 8)
    prepare(engine, options.most_frames, shown[0])
    demand = Demand(most_frames=options.most_frames, trial_s=options.seconds + 30 * options.piece)
    crowd = Crowd(engine, demand, shown, MOST_FILLING)
    if not crowd.gather(options.streams):
        raise SystemExit(f"{options.streams} streams do not fit")
    engine.wait()
    with rarely_collected(), Pauses() as pauses:
        run, at = Run(crowd, options.streams, pauses), options.seconds
        run.go(at)

        def piece() -> None:
            nonlocal at
            at += options.piece
            run.go(at)
            engine.wait()

        if options.python:
            functions(piece, 4)
        found = profiled(engine.device, piece)
        trial = run.judged()
    print(trial)
    print(json.dumps({"bench": "profile_serving"} | card | found | {"trial": dataclasses.asdict(trial)}), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llava-onevision-7b", help=f"one of {', '.join(SHAPES)}, or a model")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--most-frames", type=int, default=32)
    parser.add_argument("--encoder", default="stc_cacher")
    parser.add_argument("--compressor", default="stc_pruner")
    parser.add_argument("--memory", default="sliding_window:window_tokens=5000")
    parser.add_argument("--seconds", type=float, default=4.0, help="of serving before the profile")
    parser.add_argument("--piece", type=float, default=0.4, help="seconds under the profiler")
    parser.add_argument("--singles", action="store_true", help="lay out codes for words of answers, too")
    parser.add_argument("--python", action="store_true", help="also the host's time by Python function")
    parser.add_argument("--kv", default="", help="codecs by tier, such as device=int8")
    parser.add_argument("--arithmetic", default="model", help="model or fp8: of the language layers' products")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
