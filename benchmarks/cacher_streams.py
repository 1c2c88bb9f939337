"""Encode times of one frame of many streams: dense, the published Cacher, and both forms of ours, alike in one run.

    python -m benchmarks.cacher_streams --streams 16,1 --ratios 0.25,0.15 --seconds 80

A vision tower of the named sizes with random weights sees moving Pocket World frames. Every row is a prepared encoder
called as the engine calls it (states, addresses and refresh rule included), wall clock from call to finished result, in
turns with the others. `ours` is `stc_cacher`, `corrected` `stc_corrected` (with its own `look_every`). `mean` is that
of a stream over time: the published form refreshes once in `--interval` frames, ours when a frame asks for it, so its
mean is that of a reusing frame, and `--refreshes` is the share of whole frames that is added. First a card, then
tables, last one JSON line; its profile says where the time of a layer goes.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.encode_tower import MOMENTS, moving_frames, random_tower
from onlooker.cli.timing import Action, time_in_turns
from onlooker.core import provenance, registry
from onlooker.core.contracts import EncoderAccelerator, Prepared
from onlooker.core.state import StreamState
from onlooker.encode.full import Full
from onlooker.encode.stc_cacher import STCCacher
from onlooker.encode.stc_corrected import STCCorrected
from onlooker.encode.stc_published import STCPublished
from onlooker.models._loading import choose_device, choose_dtype
from onlooker.models._shapes import shape_of
from onlooker.models._siglip import take_apart

SHOWN = 24


class Bench:
    """The tower, the frames and what was measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.perf_counter()
        self.device = choose_device(options.device)
        self.dtype = choose_dtype(options.dtype, self.device)
        torch.manual_seed(0)
        shape = shape_of(options.shapes)
        self.counts = [int(part) for part in options.streams.split(",")]
        self.module = random_tower(shape, options.layers, self.device, self.dtype)
        self.tower = take_apart(self.module)
        self.frames = moving_frames(self.module, shape.image_size, max(self.counts), self.device, self.dtype)
        gpu = self.device.type == "cuda"
        self.card = {
            "tower": f"{shape.name}: {len(self.tower.layers)} layers, {self.tower.num_tokens} tokens, "
            f"{self.tower.dim} wide",
            "interval": options.interval,
            "refreshes": options.refreshes,
            "look_every": options.look_every,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if gpu else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
        }
        self.rows: list[dict[str, Any]] = []
        self.profiles: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds that may still be used."""
        return self.options.seconds - (time.perf_counter() - self.began)

    def measure(self, count: int, ratio: float) -> None:
        """All rows at so many streams and this share of the tokens."""
        published = STCPublished(self.options.interval, ratio, round_to=16)
        ours = STCCacher(
            tau=0.0,
            recompute_ratio=ratio,
            look_every=self.options.look_every,
            refresh_share=None,
            reference_dtype=self.options.references,
        )
        corrected = STCCorrected(tau=0.0, recompute_ratio=ratio, reference_dtype=self.options.references, captured=True)
        actions = {
            "dense": self._encoder(Full(), count),
            "published, reusing": self._encoder(published, count, age=1),
            "published, whole": self._encoder(published, count, age=0),
            "ours, reusing": self._encoder(ours, count, age=1),
            "ours, whole": self._encoder(ours, count, age=0),
            "corrected, reusing": self._encoder(corrected, count, age=1),
            "corrected, whole": self._encoder(corrected, count, age=0),
        }
        for text in self.options.variants:
            actions[text] = self._encoder(registry.make("encoder", text), count, age=1)
        timed = time_in_turns(actions, self.options.repeats, self.device, lambda: None)
        ms = {name: timed[f"{name}_ms"] for name in actions}
        interval, share = self.options.interval, self.options.refreshes
        ms["published, mean"] = (ms["published, whole"] + (interval - 1) * ms["published, reusing"]) / interval
        for name in ("ours", "corrected"):
            ms[f"{name}, mean"] = share * ms[f"{name}, whole"] + (1 - share) * ms[f"{name}, reusing"]
        print(f"\n{count} streams, ratio {ratio}", flush=True)
        for name, value in ms.items():
            row = {"streams": count, "ratio": ratio, "what": name, "ms": round(value, 3)}
            row["of_dense"] = round(value / ms["dense"], 4)
            row["p95_ms"] = round(timed.get(f"{name}_p95_ms", 0.0), 3)
            self.rows.append(row)
            print(f"{name:32s} {value:9.3f} ms  p95 {row['p95_ms']:9.3f}  {row['of_dense']:.3f} of dense", flush=True)
        if self.device.type == "cuda":
            for name in ("corrected, reusing", "corrected, whole"):
                self._profile(f"{name}, {count} streams, ratio {ratio}", actions[name])

    def _encoder(self, method: EncoderAccelerator, count: int, age: int | None = None) -> Action:
        """A prepared encoder at every moment; `age` 0: each frame is whole, 1: each reuses the last one."""
        prepared: Prepared = method.prepare(self.tower, self.frames[0][0], count, lambda name: None)
        states: Sequence[StreamState] = [method.new_state() for _ in range(count)]
        prepared.encode(self.frames[0][:count], states)

        def begin(turn: int) -> Tensor:
            if age is not None:
                for state in states:
                    # As if the last refresh were so long ago; a stream without a grid has no reference that fits.
                    state.age = age  # pyright: ignore[reportAttributeAccessIssue] - both Cachers count frames
            return self.frames[1 + turn % (MOMENTS - 1)][:count]

        def run(turn: int, hidden: Tensor) -> Any:
            if age == 0:
                for state in states:
                    state.grid = ()  # pyright: ignore[reportAttributeAccessIssue]
            return prepared.encode(hidden, states)

        return Action(begin, run)

    def _profile(self, name: str, action: Action) -> None:
        ready = action.prepare(0)
        torch.cuda.synchronize(self.device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            action.run(0, ready)
            torch.cuda.synchronize(self.device)
        layers = len(self.tower.layers)
        spent = [(e.key, e.self_device_time_total / layers, e.count / layers) for e in profiler.key_averages()]
        spent = sorted((kernel for kernel in spent if kernel[1]), key=lambda kernel: -kernel[1])
        total, launches = sum(us for _, us, _ in spent), sum(times for *_, times in spent)
        print(f"a layer of {name}: {total:.1f} us in {launches:.1f} kernels", flush=True)
        for kernel, us, times in spent[:SHOWN]:
            print(f"{us:8.2f} us {times:5.2f} x  {kernel[:100]}", flush=True)
        listed = [[kernel[:90], round(us, 2), round(times, 2)] for kernel, us, times in spent[:SHOWN]]
        self.profiles[name] = {"us": round(total, 1), "launches": round(launches, 1), "kernels": listed}


def main() -> None:
    """Time everything that the seconds allow."""
    options = _options()
    bench = Bench(options)
    print("\n".join(f"{name}: {value}" for name, value in bench.card.items()), flush=True)
    left_out = []
    with torch.no_grad():
        for count in bench.counts:
            for ratio in (float(part) for part in options.ratios.split(",")):
                if bench.left > 0:
                    bench.measure(count, ratio)
                else:
                    left_out.append(f"{count} streams, ratio {ratio}")
    if left_out:
        print(f"left out (no seconds left): {'; '.join(left_out)}", flush=True)
    result = {"rows": bench.rows, "profiles": bench.profiles, "left_out": left_out}
    print(json.dumps({"bench": "cacher_streams"} | bench.card | result), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llava-onevision-7b", help="whose vision tower: a name or a local folder")
    parser.add_argument("--streams", default="16,1", help="streams in a batch, by commas")
    parser.add_argument("--ratios", default="0.25,0.15", help="share of the tokens recomputed, by commas")
    parser.add_argument("--interval", type=int, default=4, help="frames between references of the published form")
    parser.add_argument("--refreshes", type=float, default=0.0, help="share of whole frames in our form's mean")
    parser.add_argument("--variants", nargs="*", default=[], help="encoders to time too, each on frames that reuse")
    parser.add_argument("--references", default="auto", choices=("auto", "int8", "model"), help="of our form")
    parser.add_argument("--look-every", type=int, default=3, help="frames in which everyone has looked, of our form")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=80.0, help="nothing new is begun after so many seconds")
    parser.add_argument("--layers", type=int, default=0, help="only the first layers of the tower (0: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
