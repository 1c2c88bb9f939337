"""What each compressor costs a frame: many streams in one call, tokens as a model makes them, no model needed.

    python -m benchmarks.compressor_cost --streams 16 --tokens 196 --dim 3584

Streams are in different phases, as in life: each has seen another number of frames. Time is wall-clock from the call to
the end of the device's work, over frames of the whole measurement, so that a window's burst counts. State is that of
one stream after the last frame, what is held included. `ms_a_frame` is with steps of fixed shape prepared, as an engine
that was prepared has them (on CUDA they are graphs), `ms_unprepared` without; `prepared` says how many there are.
All methods are measured in turn, round after round, and the median of the rounds counts, with the quickest beside it
(`ms_least`): what a host does beside hits all of them alike then.
`--profile` prints in what the device spends its time in the prepared form, kernel by kernel, beside the whole.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onlooker.core import provenance, registry
from onlooker.core.contracts import Compress, Compressor
from onlooker.core.errors import ModelError, OnlookerError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


def main() -> None:
    """Prints a line for each compressor, and all of them as one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=196, help="of a frame; a square number")
    parser.add_argument("--dim", type=int, default=3584)
    parser.add_argument("--frames", type=int, default=48, help="measured, after as many to warm up")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all methods, whose median counts")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default="", help="a file that the last line is added to")
    parser.add_argument("--only", default="", help="names, separated by commas; default: all")
    parser.add_argument("--profile", type=int, default=0, help="so many of the dearest kernels of each method")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = device if options.device == "auto" else torch.device(options.device)
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = automatic if options.dtype == "auto" else getattr(torch, options.dtype)
    names = options.only.split(",") if options.only else registry.names("compressor")
    ready: list[Ready] = []
    for name in names:
        try:
            ready.append(made_ready(name, registry.make("compressor", name), options, device, dtype))
        except OnlookerError as error:
            print(f"{name}: {error}", file=sys.stderr)
    for number in range(options.repeats + 1):
        for one in ready:
            one.round(options, counts=number > 0)
        print(f"round {number} of {options.repeats}", file=sys.stderr, flush=True)
    rows = [one.row() for one in ready]
    for one, row in zip(ready, rows, strict=True):
        print(
            f"{row['compressor']:12} {row['ms_a_frame']:8.4f} ms a frame (at least {row['ms_least']:.4f},"
            f" {row['ms_unprepared']:.4f} without {row['prepared']} steps), keeps {row['kept']:6.1%},"
            f" {row['state_bytes']:>12,} bytes {row['refused']}"
        )
        if options.profile:
            profiled(one.method, one.prepared, one.frames, options)
        sys.stdout.flush()
    about = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    card = {"bench": "compressor_cost", "device": about, "dtype": str(dtype).removeprefix("torch.")}
    card |= {name: getattr(options, name) for name in ("streams", "tokens", "dim", "frames", "repeats")}
    card |= {
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    print(line := json.dumps(card | {"rows": rows}))
    if options.out:
        with Path(options.out).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def clips(
    method: Compressor, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> list[list[VisualTokens]]:
    """Frames of every stream: a steady ground, a tenth of the tokens new in each frame, a little noise; with what the
    method needs to know of them."""
    side = round(options.tokens**0.5)
    make = torch.Generator(device=device).manual_seed(1)
    shape = (options.streams, options.tokens, options.dim)
    ground, shown = torch.randn(shape, generator=make, device=device), []
    for number in range(24):
        new = torch.rand(*shape[:2], 1, generator=make, device=device) < 0.1
        ground = torch.where(new, torch.randn(shape, generator=make, device=device), ground)
        features = (ground + 0.05 * torch.randn(shape, generator=make, device=device)).to(dtype)
        extras = {"saliency": torch.rand(shape[:2], generator=make, device=device) / options.tokens}
        if "pixels" in method.needs:
            extras["pixels"] = torch.randint(256, (*shape[:2], 2352), generator=make, device=device, dtype=torch.uint8)
        about = {"global": features.mean(1, keepdim=True)}
        frame = []
        for n in range(options.streams):
            own = {name: value[n] for name, value in extras.items() if name in method.needs}
            whole = {name: value[n][None] for name, value in about.items() if name in method.needs}
            frame.append(VisualTokens.of_frame(features[n], (side, side), number, float(number), own, whole))
        shown.append(frame)
    return shown


@dataclass
class Timed:
    """One way to run a method: its streams, and what each round of it took."""

    run: Compress
    states: list[StreamState]
    took: list[float] = field(default_factory=list)
    """Milliseconds a frame."""
    kept: int = 0
    seen: int = 0

    @torch.no_grad()
    def round(self, frames: Sequence[list[VisualTokens]], options: argparse.Namespace, counts: bool) -> None:
        """So many frames of every stream."""
        device = frames[0][0].features.device
        if not self.took and not counts:
            for number in range(options.streams):  # stream n starts n frames late
                self.run(frames[number % 24][: number + 1], self.states[: number + 1])
        wait(device)
        began = time.perf_counter()
        for number in range(options.frames):
            outs = self.run(frames[number % 24], self.states)
            if counts:
                self.kept += sum(map(len, outs))
                self.seen += options.streams * options.tokens
        wait(device)
        if counts:
            self.took.append((time.perf_counter() - began) * 1000 / options.frames / options.streams)


@dataclass
class Ready:
    """A method that can be measured, prepared and as it is."""

    name: str
    method: Compressor
    frames: Sequence[list[VisualTokens]]
    prepared: Compress
    steps: list[str]
    """What was prepared, or why nothing was."""
    ways: list[Timed]
    """As it is, and prepared."""

    def round(self, options: argparse.Namespace, counts: bool) -> None:
        """One of each."""
        for way in self.ways:
            way.round(self.frames, options, counts)

    def row(self) -> dict[str, Any]:
        """Cost, share and state."""
        plain, way = self.ways
        is_prepared = self.prepared != self.method.compress_streams
        return {
            "compressor": self.name,
            "settings": registry.describe(self.method),
            "ms_a_frame": round(statistics.median(way.took), 5),
            "ms_least": round(min(way.took), 5),
            "ms_unprepared": round(statistics.median(plain.took), 5),
            "prepared": len(self.steps) if is_prepared else 0,
            "refused": self.steps[0] if self.steps and not is_prepared else "",
            "kept": round(way.kept / way.seen, 4),
            "state_bytes": max(state.num_bytes() for state in way.states),
            "lookahead": self.method.lookahead,
        }


@torch.no_grad()
def made_ready(
    name: str, method: Compressor, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Ready:
    """With frames of its own, and steps."""
    frames, steps = clips(method, options, device, dtype), list[str]()
    try:
        prepared = method.prepare(frames[0][0], options.streams, steps.append)
    except ModelError as error:
        print(f"{name}: {error}", file=sys.stderr)
        prepared, steps = method.compress_streams, [str(error)]
    ways = [
        Timed(run, [method.new_state() for _ in range(options.streams)]) for run in (method.compress_streams, prepared)
    ]
    return Ready(name, method, frames, prepared, steps, ways)


def profiled(
    method: Compressor, run: Compress, frames: Sequence[list[VisualTokens]], options: argparse.Namespace
) -> None:
    """Prints the kernels that take longest, in milliseconds a frame, and all of them together."""
    few, way = argparse.Namespace(**vars(options) | {"frames": 24}), Timed(run, [])
    way.states = [method.new_state() for _ in range(options.streams)]
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        way.round(frames, few, counts=False)
        way.round(frames, few, counts=True)
    calls = options.streams / 2 + 2 * few.frames  # at first they come one by one
    on_device = torch.autograd.DeviceType.CUDA
    spans = [one for one in profile.key_averages() if one.device_type == on_device]
    spans.sort(key=lambda one: -one.self_device_time_total)
    each = 1000 * calls * options.streams
    whole, number = sum(one.self_device_time_total for one in spans), sum(one.count for one in spans)
    print(f"    on the device {whole / each:.4f} ms a frame, {number / calls:.0f} kernels and copies a call")
    for one in spans[: options.profile]:
        print(f"    {one.self_device_time_total / each:.5f} ms, {one.count / calls:5.1f} a call: {one.key[:100]}")


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
