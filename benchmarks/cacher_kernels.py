"""How fast each kernel of the corrected Cacher's step is, by warps, over references of random codes.

    python -m benchmarks.cacher_kernels --streams 16,1 --ratio 0.25

Microseconds of one layer at the sizes of SigLIP-so400m at 384 pixels, with the bytes that a kernel must move at least
and the share of the memory's speed that this makes. Without a GPU (Triton's interpreter) sizes are small and nothing is
timed. The last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onlooker.core import provenance
from onlooker.encode.stc_cacher._change import STEPS, projection
from onlooker.encode.stc_corrected._state import CorrectedState
from onlooker.encode.stc_corrected._step import FLAT
from onlooker.kernels import corrected, corrected_whole
from onlooker.kernels.corrected import CorrectedStep
from onlooker.kernels.corrected_shape import FIELDS, SKETCH, Rules, Shape
from onlooker.kernels.corrected_whole import WholeStep

IDLE, REPEATS = 2_000_000, 12
LAYER = 1
BYTES_A_SECOND = 3.35e12
"""Of an H100's memory."""


class Bench:
    """A step of so many streams over random codes, and what to launch."""

    def __init__(self, streams: int, ratio: float, device: torch.device, small: bool) -> None:
        torch.manual_seed(0)
        tokens, dim, heads = (50, 96, 4) if small else (729, 1152, 16)
        dtype = torch.float32 if small else torch.bfloat16
        count = int(ratio * tokens)
        rules = Rules(STEPS, 16, 1.0, FLAT)
        self.shape = Shape(streams, tokens, dim, 2, heads, (dim // heads) ** -0.5, count, rules)
        like = torch.empty(tokens, dim, dtype=dtype, device=device)
        self.states = [self._state(like, heads) for _ in range(streams)]
        table = torch.tensor([[getattr(state, field).data_ptr() for state in self.states] for field in FIELDS])
        signs = projection(dim, device, SKETCH).sign().to(dtype)
        self.step = CorrectedStep(self.shape, table.to(device), like, signs, "torch" if small else "cudnn")
        self.whole = WholeStep(self.shape, self.step.table, like, signs)
        room, rows = self.shape.room, streams * tokens
        self.step._counts.copy_(torch.tensor([count, room, 0, count]).expand(2, streams, 4))
        first = (torch.arange(streams, device=device) * tokens)[:, None]
        for flat, place, many in (
            (self.step._flat, self.step._place, room),
            (self.step._working, self.step.work_place, count),
        ):
            flat.copy_((first + torch.randperm(tokens, device=device)[:many]).flatten())
            place[flat] = torch.arange(len(flat), dtype=torch.int32, device=device)
        self.x, self.made = (torch.randn(rows, more, dtype=dtype, device=device) for more in (dim, dim + SKETCH))
        self.fresh, self.wide = (torch.randn(n, 3 * dim, dtype=dtype, device=device) for n in (streams * room, rows))
        self.mlp = torch.randn(streams * count, dim, dtype=dtype, device=device)
        self.norm = torch.nn.LayerNorm(dim, device=device, dtype=dtype)

    def _state(self, like: Tensor, heads: int) -> CorrectedState:
        state = CorrectedState()
        state.begin(like, 2, heads, True, 0.0, corrected=False)
        for name in ("values", "mlp", "entered", "middle", "attention_sketch", "mlp_sketch"):
            getattr(state, name).random_(-127, 128)
        for name in ("queries", "keys", "attention"):
            low, high = (torch.randint_like(getattr(state, name), 1, 16) for _ in range(2))
            getattr(state, name).copy_(low + 16 * high)
        assert state.scales is not None
        state.scales.fill_(0.01)
        return state

    def kernels(self) -> dict[str, tuple[Callable[[], Any], float]]:
        """What to launch, and the bytes that it must move."""
        step, whole, shape = self.step, self.whole, self.shape
        rows, dim, wide = len(self.x), shape.dim, self.x.element_size()
        some, changed = (shape.streams * number for number in (shape.room, shape.count))
        row, four, eight, sketch = wide * dim, dim / 2, dim, 4 * SKETCH
        kept = (rows - some) * four + (rows - changed) * (four + eight)
        fresh = some * (row + four) + changed * (2 * row + four + eight)
        bytes_of = {
            "fill": 3 * rows * row + kept + fresh,
            "norm_looking": 2 * some * row + changed * sketch,
            "norm_middle": 3 * changed * row + changed * sketch,
            "finish": rows * (3 * row + four) + changed * (row + eight) + (rows - changed) * eight + some * row,
            "carry_attention": rows * (2 * sketch + wide * SKETCH + 2 * SKETCH),
            "choose": rows * (sketch + 40),
            "keep_looked": rows * (3 * row + 2 * four + eight),
            "keep_branch": rows * (4 * row + four),
        }
        launches = {
            "fill": lambda: step.fill(self.fresh, LAYER),
            "norm_looking": lambda: step.norm_looking(self.x, LAYER, self.norm),
            "norm_middle": lambda: step.norm_middle(self.x, self.made, LAYER, self.norm),
            "finish": lambda: step.finish(self.x, self.made, self.mlp, LAYER - 1, self.norm),
            "carry_attention": lambda: step.carry_attention(self.made[:, dim:], LAYER),
            "keep_looked": lambda: whole.keep_looked(self.wide, LAYER),
            "keep_branch": lambda: whole.keep_branch(self.x, self.made, "attention", LAYER, self.norm),
            # last, as it says anew who is computed
            "choose": lambda: step.choose(LAYER),
        }
        return {name: (launch, bytes_of[name]) for name, launch in launches.items()}

    def attention(self) -> Callable[[], Any]:
        """All tokens' attention, by the way that a step takes."""
        step, shape = self.step, self.shape
        keys, values = step.filled
        return lambda: corrected.attend_heads(step.asked, keys, values, shape.heads, shape.scale, step.way)


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


def measure(bench: Bench, small: bool, rows: list[dict[str, Any]]) -> None:
    """Everything at so many streams."""

    def note(kernel: str, warps: int, run: Callable[[], Any], num_bytes: float) -> None:
        run()
        us = 0.0 if small else timed_us(run)
        least = num_bytes / BYTES_A_SECOND * 1e6
        told = f"at least {least:6.2f} us for {num_bytes / 1e6:6.1f} MB" if num_bytes else ""
        print(f"{kernel:16s} {warps:2d} warps {us:8.2f} us, {told}", flush=True)
        row = {"streams": bench.shape.streams, "kernel": kernel, "warps": warps, "us": round(us, 2)}
        rows.append(row | {"bytes": round(num_bytes), "least_us": round(least, 2)})

    note("attention", 0, bench.attention(), 0)
    for warps in (1, 2, 4, 8):
        corrected.WARPS = corrected_whole.WARPS = warps
        for name, (run, num_bytes) in bench.kernels().items():
            if name != "choose":
                note(name, warps, run, num_bytes)
    for warps in (4, 8, 16, 32):
        corrected.CHOOSING = warps
        note("choose", warps, *bench.kernels()["choose"])


def main() -> None:
    """Time all kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="16,1")
    parser.add_argument("--ratio", type=float, default=0.25)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    small = not torch.cuda.is_available()
    with torch.no_grad():
        for streams in (int(part) for part in options.streams.split(",")):
            print(f"\n{streams} streams, ratio {options.ratio}", flush=True)
            measure(Bench(streams, options.ratio, torch.device("cpu" if small else "cuda"), small), small, rows)
    card = torch.cuda.get_device_name() if not small else ""
    print(
        json.dumps({"bench": "cacher_kernels", "device": card, "commit": provenance.commit(), "rows": rows}), flush=True
    )


if __name__ == "__main__":
    main()
