"""Where the time of a step of the corrected Cacher goes, kernel by kernel, for several tiles of its attention.

    python -m benchmarks.cacher_tiles --streams 16,1 --ratios 0.25 --tiles 64x64x4x3/64x64x4x3,64x64x4x3/128x64x8x3w

A few layers at the named sizes with random weights see moving Pocket World frames. Every pair of tiles (rows x columns
x warps x stages, w: heads worked on as 128 columns; of corrections, and of those that look) is compared with the plain
form (outputs, arithmetic) and timed; the kernels of the fastest are listed. The last line is JSON.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.encode_tower import MOMENTS, moving_frames, random_tower
from onlooker.core import provenance
from onlooker.encode.full import Full
from onlooker.encode.stc_corrected import STCCorrected
from onlooker.encode.stc_corrected._prepared import CorrectedEncoder
from onlooker.kernels.corrected import Tile
from onlooker.models._loading import choose_device, choose_dtype
from onlooker.models._shapes import shape_of
from onlooker.models._siglip import take_apart

IDLE = 4_000_000
"""Cycles that the device sleeps before a step."""


def wall_ms(encoder: Any, frames: list[Tensor], states: list[Any], repeats: int) -> float:
    """Median milliseconds of a step on the device, from its first kernel to its last."""
    spent = []
    for turn in range(repeats + 2):
        spent.append(once_ms(encoder, frames[1 + turn % (MOMENTS - 1)], states))
    return statistics.median(spent[2:])


def once_ms(encoder: Any, frame: Tensor, states: list[Any]) -> float:
    """Milliseconds of one step on the device."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(IDLE)  # while it does nothing, everything is put in line for it
    begun.record()
    encoder.encode(frame[: len(states)], states)
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended)


def kernels_of(encoder: Any, frame: Tensor, states: list[Any], layers: int) -> list[list[Any]]:
    """Microseconds and launches a layer, by kernel."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        encoder.encode(frame[: len(states)], states)
        torch.cuda.synchronize()
    spent = [(e.key[:80], e.self_device_time_total / layers, e.count / layers) for e in profiler.key_averages()]
    return sorted(([name, round(us, 2), round(n, 2)] for name, us, n in spent if us), key=lambda one: -one[1])


def compare(tower: Any, frames: list[Tensor], encoder: Any, method: STCCorrected, count: int) -> None:
    """The captured step beside the plain form, frame by frame."""
    ours, plain = ([method.new_state() for _ in range(count)] for _ in range(2))
    for turn in range(3):
        got, wanted = encoder.encode(frames[turn][:count], ours), method.encode(tower, frames[turn][:count], plain)
        apart = (got.hidden.float() - wanted.hidden.float()).norm(dim=-1) / wanted.hidden.float().norm(dim=-1)
        shares = [float(each.recomputed.mean()) for each in (got, wanted)]  # pyright: ignore[reportOptionalMemberAccess]
        print(
            f"frame {turn}: apart {float(apart.median()):.4f} median, {float(apart.max()):.4f} most, shares "
            f"{shares[0]:.4f} and {shares[1]:.4f}, not a number: {int(got.hidden.isnan().sum())}",
            flush=True,
        )


def main() -> None:
    """Compare, then time everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llava-onevision-7b", help="whose vision tower: a name or a local folder")
    parser.add_argument("--streams", default="16,1")
    parser.add_argument("--ratios", default="0.25,0.15")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tiles", default="64x64x4x3/64x64x4x3", help="pairs of tiles, by commas")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--method", default="", help="further settings, name=number by commas")
    options = parser.parse_args()
    device = choose_device("auto")
    dtype, shape = choose_dtype("auto", device), shape_of(options.shapes)
    torch.manual_seed(0)
    module = random_tower(shape, options.layers, device, dtype)
    tower, counts = take_apart(module), [int(part) for part in options.streams.split(",")]
    frames = moving_frames(module, shape.image_size, max(counts), device, dtype)
    more = {name: float(value) for name, value in (part.split("=") for part in options.method.split(",") if part)}
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for ratio in (float(part) for part in options.ratios.split(",")):
            method = STCCorrected(tau=0.0, recompute_ratio=ratio, project_tau=0, **more)  # pyright: ignore[reportArgumentType]
            for count in counts:
                measure(tower, frames, method, count, options, rows)
    print(json.dumps({"bench": "cacher_tiles", "commit": provenance.commit(), "rows": rows}), flush=True)


def measure(
    tower: Any, frames: list[Tensor], method: STCCorrected, count: int, options: Any, rows: list[dict[str, Any]]
) -> None:
    """All tiles at so many streams."""
    layers, like, best = len(tower.layers), frames[0][0], None
    full = Full().prepare(tower, like, count, lambda name: None)
    dense = wall_ms(full, frames, [Full().new_state() for _ in range(count)], options.repeats) / layers
    print(f"\n{count} streams, ratio {method.recompute_ratio}: dense {dense * 1000:.1f} us a layer", flush=True)
    for text in options.tiles.split(","):
        tiles = [
            Tile(*(int(part) for part in one.strip("w").split("x")), split="w" not in one) for one in text.split("/")
        ]
        try:
            encoder = CorrectedEncoder(method, tower, like, count, lambda name: None, "cudnn", tiles=tiles)
        except Exception as error:  # a tile that does not fit says so, and the others are timed
            print(f"{text}: {type(error).__name__} {str(error)[:200]}", flush=True)
            continue
        if text not in {row["tile"] for row in rows}:
            compare(tower, frames, encoder, method, min(count, 3))
        states = [method.new_state() for _ in range(count)]
        encoder.encode(frames[0][:count], states)
        some = wall_ms(encoder, frames, states, options.repeats) / layers
        for state in states:
            state.grid = ()
        whole = once_ms(encoder, frames[0], states) / layers
        print(f"{text:24s} {some * 1000:7.1f} us, {some / dense:.3f} of dense; whole {whole / dense:.3f}", flush=True)
        rows.append(
            {"streams": count, "ratio": method.recompute_ratio, "tile": text, "us": round(some * 1000, 1)}
            | {"of_dense": round(some / dense, 4), "whole_of_dense": round(whole / dense, 4)}
        )
        if best is None or some < best[0]:
            best = (some, text, encoder, states)
    assert best is not None, "no tile fits"
    print(f"kernels of a layer, {best[1]}", flush=True)
    for name, us, times in kernels_of(best[2], frames[1], best[3], layers)[:22]:
        print(f"{us:8.2f} us {times:5.2f} x  {name}", flush=True)
    for state in best[3]:
        state.grid = ()
    print("kernels of a whole layer", flush=True)
    for name, us, times in kernels_of(best[2], frames[1], best[3], layers)[:12]:
        print(f"{us:8.2f} us {times:5.2f} x  {name}", flush=True)


if __name__ == "__main__":
    main()
