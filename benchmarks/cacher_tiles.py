"""How fast each kernel of the corrected Cacher's step is with other tiles and warps, over references of random codes.

    python -m benchmarks.cacher_tiles --streams 16,1 --ratio 0.25

Every setting is compiled first, shared out to processes; then timed one after another, microseconds of one layer at the
sizes of SigLIP-so400m at 384 pixels. Attention is compared with that of the first setting. Without a GPU (Triton's
interpreter) sizes are small and nothing is timed. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onlooker.core import provenance
from onlooker.encode.stc_cacher._change import STEPS, projection
from onlooker.encode.stc_corrected._state import CorrectedState
from onlooker.encode.stc_corrected._step import FLAT, LEAST
from onlooker.kernels import corrected, corrected_whole
from onlooker.kernels.corrected import CorrectedStep
from onlooker.kernels.corrected_shape import FIELDS, SKETCH, Rules, Shape, Tile
from onlooker.kernels.corrected_whole import WholeStep

TILES = (
    "64x64x4x2w 64x64x4x3w 128x64x8x2w 128x64x8x3w 64x32x4x3w 64x64x4x2 64x64x4x3 64x64x4x4 64x32x4x3 64x32x4x4 "
    "128x64x8x2 128x64x8x3 128x64x4x2 128x32x8x3 128x32x4x3 64x128x4x2 64x64x8x3 128x128x8x2 32x64x4x3 32x64x2x3"
)
IDLE, REPEATS = 2_000_000, 12
LAYER = 1


def tile_of(text: str) -> Tile:
    """Rows x columns x warps x stages; w: heads of 72 columns worked on as 128."""
    return Tile(*(int(part) for part in text.strip("w").split("x")), split="w" not in text)


class Bench:
    """A step of so many streams over random codes, and what to launch."""

    def __init__(self, streams: int, ratio: float, device: torch.device, small: bool) -> None:
        torch.manual_seed(0)
        tokens, dim, heads = (50, 96, 4) if small else (729, 1152, 16)
        dtype = torch.float32 if small else torch.bfloat16
        count = int(ratio * tokens)
        rules = Rules(STEPS, 16, 1.0, FLAT, LEAST)
        self.shape = Shape(streams, tokens, dim, 2, heads, (dim // heads) ** -0.5, count, rules)
        like = torch.empty(tokens, dim, dtype=dtype, device=device)
        self.states = [self._state(like, heads) for _ in range(streams)]
        names = ("attended", "attended_scales", "sums")
        self.first = [{name: getattr(state, name).clone() for name in names} for state in self.states]
        table = torch.tensor([[getattr(state, field).data_ptr() for state in self.states] for field in FIELDS])
        signs = projection(dim, device, SKETCH).sign().to(dtype)
        self.step = CorrectedStep(self.shape, table.to(device), like, signs, "torch" if small else "cudnn")
        self.whole = WholeStep(self.shape, self.step.table, like, signs)
        room, rows = self.shape.room, streams * tokens
        self.step.counts.copy_(torch.tensor([count, room, tokens - room, count]).expand(streams, 4))
        first = (torch.arange(streams, device=device) * tokens)[:, None]
        self.step._flat.copy_((first + torch.arange(room, device=device)).flatten())
        self.step._working.copy_((first + torch.arange(count, device=device)).flatten())
        rest = torch.arange(tokens, device=device, dtype=torch.int32) + room
        self.step._rest.copy_(rest.clamp_max(tokens - 1).repeat(streams))
        self.x, self.made = (torch.randn(rows, more, dtype=dtype, device=device) for more in (dim, dim + SKETCH))
        self.fresh, self.wide = (torch.randn(n, 3 * dim, dtype=dtype, device=device) for n in (streams * room, rows))
        self.mlp = torch.randn(streams * count, dim, dtype=dtype, device=device)
        self.logs = torch.randn(streams, heads, tokens, device=device)
        self.norm = torch.nn.LayerNorm(dim, device=device, dtype=dtype)

    def _state(self, like: Tensor, heads: int) -> CorrectedState:
        state = CorrectedState()
        state.begin(like, 2, heads, True, 0.0)
        for name in ("values", "attended", "mlp", "entered", "middle", "attention_sketch", "mlp_sketch"):
            getattr(state, name).random_(-127, 128)
        for name in ("queries", "keys", "attention"):
            low, high = (torch.randint_like(getattr(state, name), 1, 16) for _ in range(2))
            getattr(state, name).copy_(low + 16 * high)
        for tensor, value in ((state.scales, 0.01), (state.attended_scales, 130), (state.missed, 0)):
            assert tensor is not None
            tensor.fill_(value)
        assert state.sums is not None
        state.sums.fill_(torch.tensor(float(like.shape[0])).log())
        return state

    def attention(self, kind: str, text: str) -> Callable[[], None]:
        """One launch of a kernel of attention with this tile."""
        tile = tile_of(text)
        if kind == "exchange":
            step = replace_tiles(self.step, exchanging=tile)
            return lambda: step.exchange(LAYER)
        step = replace_tiles(self.step, looking=tile)
        return lambda: step.look(self.fresh, LAYER)

    def others(self) -> dict[str, Callable[[], Any]]:
        """The other kernels."""
        step, whole = self.step, self.whole
        return {
            "swap": lambda: step.swap(self.fresh, LAYER),
            "norm_looking": lambda: step.norm_looking(self.x, LAYER, self.norm),
            "norm_middle": lambda: step.norm_middle(self.x, self.made, LAYER, self.norm),
            "finish": lambda: step.finish(self.x, self.made, self.mlp, LAYER),
            "carry_attention": lambda: step.carry_attention(self.made[:, self.shape.dim :], LAYER),
            "keep_looked": lambda: whole.keep_looked(self.wide, self.x, self.logs, LAYER),
            "keep_branch": lambda: whole.keep_branch(self.x, self.made, "attention", LAYER, self.norm),
        }

    def result(self, run: Callable[[], None]) -> Tensor:
        """What attention writes over references as they were at first."""
        for state, kept in zip(self.states, self.first, strict=True):
            for name, tensor in kept.items():
                getattr(state, name).copy_(tensor)
        self.step._lost.zero_()
        self.step._attended.zero_()
        run()
        return self.step._attended.float().clone()


def replace_tiles(step: CorrectedStep, **tiles: Tile) -> CorrectedStep:
    """The same buffers under other tiles."""
    twin = replace(step, **tiles)
    for name, value in vars(step).items():
        if name not in ("exchanging", "looking"):
            setattr(twin, name, value)
    return twin


def timed_us(run: Callable[[], Any]) -> float:
    """Median microseconds of one launch, in a line of several."""
    run()
    spent = []
    for _ in range(3):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(IDLE)
        begun.record()
        for _ in range(REPEATS):
            run()
        ended.record()
        torch.cuda.synchronize()
        spent.append(begun.elapsed_time(ended) / REPEATS * 1000)
    return statistics.median(spent)


def compile_part(texts: list[str]) -> None:
    """Compile attention with these tiles; they are found in Triton's store afterwards."""
    for text in texts:
        for streams in (16, 1):  # numbers are compiled in where they are 1 or no multiples of 16
            try:
                bench = Bench(streams, 0.25, torch.device("cuda"), False)
                for kind in ("exchange", "look"):
                    bench.attention(kind, text)()
                torch.cuda.synchronize()
            except Exception as error:
                print(f"{text}: {type(error).__name__} {str(error)[:120]}", flush=True)


def measure(bench: Bench, texts: list[str], small: bool, rows: list[dict[str, Any]]) -> None:
    """Everything at so many streams."""
    for kind in ("exchange", "look"):
        first = None
        for text in texts:
            try:
                run = bench.attention(kind, text)
                made = bench.result(run)
                first = made if first is None else first
                apart = float((made - first).norm() / first.norm())
                us = 0.0 if small else timed_us(run)
            except Exception as error:  # a tile that does not fit says so, and the others are timed
                print(f"{kind} {text}: {type(error).__name__} {str(error)[:120]}", flush=True)
                continue
            print(f"{kind:9s} {text:14s} {us:8.2f} us, apart {apart:.5f}", flush=True)
            rows.append({"streams": bench.shape.streams, "kernel": kind, "tile": text, "us": round(us, 2)})
    for warps in (1, 2, 4, 8):
        corrected.WARPS = corrected_whole.WARPS = warps
        for name, run in bench.others().items():
            us = 0.0 if small else timed_us(run)
            if small:
                run()
            rows.append({"streams": bench.shape.streams, "kernel": name, "warps": warps, "us": round(us, 2)})
        told = ", ".join(f"{row['kernel']} {row['us']}" for row in rows[-len(bench.others()) :])
        print(f"{warps} warps: {told}", flush=True)
    for warps in (4, 8, 16, 32):
        corrected.CHOOSING = warps
        us = (
            [0.0, 0.0]
            if small
            else [timed_us(lambda middle=middle: bench.step.choose(LAYER, middle)) for middle in (False, True)]
        )
        print(f"choose {warps} warps: {us[0]:.2f} and {us[1]:.2f} us", flush=True)
        rows.append({"streams": bench.shape.streams, "kernel": "choose", "warps": warps, "us": round(us[0], 2)})


def main() -> None:
    """Compile, compare and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="16,1")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--tiles", default=TILES, help="rows x columns x warps x stages, by spaces")
    parser.add_argument("--processes", type=int, default=10)
    options = parser.parse_args()
    began, texts = time.perf_counter(), options.tiles.split()
    many = multiprocessing.get_context("fork")
    workers = [
        many.Process(target=compile_part, args=(texts[n :: options.processes],)) for n in range(options.processes)
    ]
    gpu = bool(len(open_cards()))
    for worker in workers if gpu else ():
        worker.start()
    for worker in workers if gpu else ():
        worker.join()
    print(f"compiled after {time.perf_counter() - began:.1f} s", flush=True)
    rows: list[dict[str, Any]] = []
    device = torch.device("cuda" if gpu else "cpu")
    with torch.no_grad():
        for streams in (int(part) for part in options.streams.split(",")):
            print(f"\n{streams} streams, ratio {options.ratio}", flush=True)
            measure(Bench(streams, options.ratio, device, not gpu), texts, not gpu, rows)
    print(json.dumps({"bench": "cacher_tiles", "commit": provenance.commit(), "rows": rows}), flush=True)


def open_cards() -> list[str]:
    """Cards of this machine, found without starting CUDA: a process that did cannot share its work out."""
    from pathlib import Path

    return sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))


if __name__ == "__main__":
    main()
