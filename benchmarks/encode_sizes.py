"""Dense and selective encode times at the real sizes of well-known models, with equal treatment, beside arithmetic.

    python -m benchmarks.encode_sizes --model qwen2.5-vl-7b qwen3-vl-8b --frame 448x448 720x1280 --streams 1,16 --graph

Weights are random and of the language model only one layer is made: the tower is what is timed, and its work does not
depend on what it sees. Every stream shows its own frame. With `--graph`, dense and selective alike run as one captured
CUDA graph; without, both run op by op. One JSON line a row.
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

from onlooker.core.contracts import Encoded, VisionTower
from onlooker.encode.full import Full
from onlooker.encode.stc_cacher import STCCacher
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
                shown = torch.randn(2, streams, 3, *fitted, device=device)
                with torch.no_grad():
                    hidden = [vision.embed_patches(moment) for moment in shown]
                    timed = _time(tower, hidden, method, arguments.repeats, arguments.graph)
                row = {
                    "model": name,
                    "frame": frame,
                    "streams": streams,
                    "patches": tower.num_tokens,
                    **timed,
                    "selective_of_dense": timed["selective_ms"] / timed["dense_ms"],
                    "flop_floor": method.cost(tower),
                    "ratio": arguments.ratio,
                    "graph": arguments.graph,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                    "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
                    "seed": arguments.seed,
                }
                print(json.dumps(row), flush=True)


def _time(
    tower: VisionTower, hidden: list[torch.Tensor], method: STCCacher, repeats: int, graph: bool
) -> dict[str, float]:
    """Median and p95 milliseconds of one step of all streams, dense and selective in turns."""
    streams = len(hidden[0])
    plain = [Full().new_state() for _ in range(streams)]
    states = [method.new_state() for _ in range(streams)]
    method.encode(tower, hidden[0], states)

    def dense() -> Encoded:
        return Full().encode(tower, hidden[1], plain)

    def selective() -> Encoded:
        return method.encode(tower, hidden[1], [state.fork() for state in states])

    device = hidden[0].device
    actions: dict[str, Callable[[], Any]] = {"dense": dense, "selective": selective}
    if graph:
        actions = {name: _captured(action) for name, action in actions.items()}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    spent: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + WARM_UPS):
        for name, action in actions.items():
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


def _captured(action: Callable[[], Any]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # libraries set themselves up at the first calls, which cannot be captured
            action()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = action()

    def replay() -> None:
        assert kept is not None  # what the graph writes to must stay alive as long as the graph
        graph.replay()

    return replay


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
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
