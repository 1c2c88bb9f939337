"""Dense and selective encode times at the real sizes of well-known models, with equal treatment, beside arithmetic.

    python -m benchmarks.encode_sizes --model qwen2.5-vl-7b qwen3-vl-8b --frame 448x448 720x1280 --streams 1,16 --graph

Weights are random and of the language model only one layer is made: the tower is what is timed, and its work does not
depend on what it sees. Every stream shows its own frame. With `--graph`, dense and selective alike run as one captured
CUDA graph; without, both run op by op. With `--compile`, the layers of both go through the compiler first, and the
share is taken of the faster dense, compiled or not (both are printed). One JSON line a row.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.encode._layer import run_layer
from onlooker.encode._reference import CacherState, Reference, side_by_side
from onlooker.encode.full import Full
from onlooker.encode.stc_cacher import STCCacher
from onlooker.kernels.graph import CapturedStep
from onlooker.models import SHAPES
from onlooker.models._loading import choose_device, choose_dtype
from onlooker.models._qwen_pixels import MOST_FRAME_TOKENS, FittedPixels
from onlooker.models._qwen_random import random_vision
from onlooker.models._shapes import QwenShape

WARM_UPS = 3


def main() -> None:
    """Time every combination."""
    arguments = _arguments()
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    method = STCCacher(interval=None, recompute_ratio=arguments.ratio)
    began = time.perf_counter()
    for name in arguments.model:
        torch.manual_seed(arguments.seed)
        shape = SHAPES[name]
        if not isinstance(shape, QwenShape):
            raise SystemExit(f"{name}: use onlooker bench encode for models of one frame size")
        shape = dataclasses.replace(shape, vision_layers=arguments.layers or shape.vision_layers)
        vision = random_vision(shape, dtype, device)
        for frame in arguments.frame:
            rows, cols = (int(side) for side in frame.split("x"))
            pixels = FittedPixels((0, 0), factor=vision.factor, max_pixels=MOST_FRAME_TOKENS * vision.factor**2)
            fitted = pixels.fit(rows, cols)
            tower = vision.tower(*vision.patches(fitted))
            for streams in (int(part) for part in arguments.streams.split(",")):
                if arguments.seconds and time.perf_counter() - began > arguments.seconds:
                    raise SystemExit(f"out of time before {name}, {frame}, {streams} streams: raise --seconds")
                shown = torch.randn(2, streams, 3, *fitted, device=device)
                with torch.no_grad():
                    hidden = [vision.embed_patches(moment) for moment in shown]
                    timed = _time(tower, hidden, method, arguments)
                row = {
                    "model": name,
                    "frame": frame,
                    "streams": streams,
                    "patches": tower.num_tokens,
                    **timed,
                    "selective_of_dense": timed["selective_ms"]
                    / min(timed["dense_ms"], timed.get("uncompiled_dense_ms", timed["dense_ms"])),
                    "flop_floor": method.cost(tower),
                    "ratio": arguments.ratio,
                    "graph": arguments.graph,
                    "compile": arguments.compile,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                    "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
                    "seed": arguments.seed,
                }
                print(json.dumps(row), flush=True)


def _time(
    tower: VisionTower, hidden: list[torch.Tensor], method: STCCacher, arguments: argparse.Namespace
) -> dict[str, float]:
    """Median and p95 milliseconds of one step of all streams, dense and selective in turns."""
    streams = len(hidden[0])
    plain = [Full().new_state() for _ in range(streams)]
    states = [method.new_state() for _ in range(streams)]
    method.encode(tower, hidden[0], states)

    def dense() -> torch.Tensor:
        return Full().encode(tower, hidden[1], plain).hidden

    def selective() -> torch.Tensor:
        return method.encode(tower, hidden[1], [state.fork() for state in states]).hidden

    actions: dict[str, Callable[[], torch.Tensor]] = {"dense": dense, "selective": selective}
    if arguments.compile:
        actions = {**_compiled(tower, hidden[1], method, states), "uncompiled_dense": dense}
    device = hidden[0].device
    if arguments.graph:
        steps = {name: CapturedStep(name, _hidden_of(action), [hidden[1]]) for name, action in actions.items()}
        replays: dict[str, Callable[[], Any]] = {name: step.replay for name, step in steps.items()}
    else:
        replays = {**actions}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    spent: dict[str, list[float]] = {name: [] for name in replays}
    for turn in range(arguments.repeats + WARM_UPS):
        for name, action in replays.items():
            wait()
            began = time.perf_counter()
            action()
            wait()
            if turn >= WARM_UPS:
                spent[name].append((time.perf_counter() - began) * 1000)
    timed = {}
    for name, times in spent.items():
        timed[f"{name}_ms"] = statistics.median(times)
        timed[f"{name}_p95_ms"] = sorted(times)[int(0.95 * (len(times) - 1))]
    return timed


def _compiled(
    tower: VisionTower, hidden: torch.Tensor, method: STCCacher, states: list[CacherState]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Dense and selective steps whose layers are compiled: weights are inputs, so layers of a kind share their code."""
    torch.compiler.reset()  # shapes of earlier rows would count against the limit of versions

    @torch.compile(dynamic=False)
    def whole(layer: VisionLayer, tokens: torch.Tensor) -> torch.Tensor:
        return run_layer(layer, tokens).output

    @torch.compile(dynamic=False)
    def partly(
        layer: VisionLayer, tokens: torch.Tensor, gate: torch.Tensor, values: torch.Tensor, sums: torch.Tensor
    ) -> torch.Tensor:
        old = Reference([gate], [values], [sums])
        return method._selective_layer(tower, layer, tokens, None, old, 0, Reference())[0]

    def dense() -> torch.Tensor:
        tokens = hidden
        for layer in tower.layers:
            tokens = whole(layer, tokens)
        return tokens

    def selective() -> torch.Tensor:
        tokens, old = hidden, side_by_side(states)
        for layer, gate, values, sums in zip(tower.layers, old.gate, old.values, old.sums, strict=True):
            tokens = partly(layer, tokens, gate, values, sums)
        return tokens

    return {"dense": dense, "selective": selective}


def _hidden_of(action: Callable[[], torch.Tensor]) -> Callable[[torch.Tensor], tuple[torch.Tensor]]:
    return lambda hidden: (action(),)  # the frames are `hidden` itself, so that nothing has to be copied


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    qwen = [name for name, shape in SHAPES.items() if isinstance(shape, QwenShape)]
    parser.add_argument("--model", nargs="+", default=["qwen2.5-vl-7b", "qwen3-vl-8b"], choices=qwen)
    parser.add_argument("--frame", nargs="+", default=["448x448", "720x1280"], help="rows x cols")
    parser.add_argument("--streams", default="1,16", help="streams in a batch, by commas")
    parser.add_argument("--ratio", type=float, default=0.25, help="share of the tokens recomputed")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--layers", type=int, default=0, help="only the first layers of the tower (0: all), to try it out"
    )
    parser.add_argument("--graph", action="store_true", help="replay both as CUDA graphs")
    parser.add_argument("--compile", action="store_true", help="compile the layers of both")
    parser.add_argument("--seconds", type=float, default=0, help="start no further row after this long (0: no limit)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
