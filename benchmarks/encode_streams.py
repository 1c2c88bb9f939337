"""Encode times of one frame of each of many streams: dense and selective, op by op, as graphs, compiled, with kernels.

    python -m benchmarks.encode_streams --shapes llava-onevision-7b --streams 1,4,16 --seconds 150
    python -m benchmarks.encode_streams --streams 16,1 --only kernels --seconds 90

A vision tower of the named sizes with random weights sees moving Pocket World frames, resized to what it takes; its
work does not depend on what the weights make of them. Dense and selective are treated alike in every row pair, beside
the stock Transformers module and a plain re-implementation of the published algorithm. Times are wall clock from call
to finished result, in turns. `rounded` is a selective frame whose number of tokens is rounded to a multiple of 16.
First a card, then tables as they are ready, last one JSON line; its `profile` says where the time of a layer goes.
"""

import argparse
import dataclasses
import json
import platform
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.encode_kernels import kernel_cases
from benchmarks.encode_tower import MOMENTS, Published, moving_frames, random_tower, twin
from benchmarks.encode_ways import EncodeWays
from onlooker.cli.timing import Action, time_in_turns
from onlooker.core import provenance
from onlooker.core.contracts import VisionTower
from onlooker.encode._packed import PackedTower, StepPlan, Ways, packed_layers
from onlooker.encode._prepared import PreparedEncoder
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels import head_attention, rows
from onlooker.kernels.graph import CapturedStep
from onlooker.models._loading import choose_device, choose_dtype
from onlooker.models._shapes import shape_of
from onlooker.models._siglip import take_apart

CALLS = 20
"""Calls of a kernel in one graph: one alone is too short to time."""
ROUND_TO = 16
SHOWN = 20
"""Kernels of a layer that a profile lists, the longest first."""
CHOICES = {"attention, whole": "whole", "attention, some": "some"}
"""Kernels with several ways, the fastest of which is used from then on."""
SUMMARY = (
    ("published eager", "selective"),
    ("eager", "selective"),
    ("graph", "selective"),
    ("packed, plain", "selective"),
    ("compile+graph", "selective"),
    ("kernels+graph", "selective"),
    ("kernels+graph", "rounded"),
    ("kernels+graph", "shared"),
)
"""Ways and frames whose ratios to dense frames of the same way are summed up."""


def main() -> None:
    """Time everything that the seconds allow."""
    options = _options()
    bench = Bench(options)
    print("\n".join(f"{name}: {value}" for name, value in bench.card.items()), flush=True)
    with torch.no_grad():
        bench.measure()
    print(json.dumps({"bench": "encode_streams"} | bench.card | bench.results), flush=True)
    if "failed" in bench.results:
        raise SystemExit(f"failed: {', '.join(bench.results['failed'])}")


class Bench:
    """The tower, the frames, the clock, and what was measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.perf_counter()
        self.counts = [int(part) for part in options.streams.split(",")]
        self.device = choose_device(options.device)
        self.dtype = choose_dtype(options.dtype, self.device)
        torch.manual_seed(options.seed)
        shape = shape_of(options.shapes)
        self.module = random_tower(shape, options.layers, self.device, self.dtype)
        self.tower: VisionTower = take_apart(self.module)
        self.method = STCPublished(options.interval, options.ratio)
        self.rounded = dataclasses.replace(self.method, round_to=ROUND_TO)
        self.frames = moving_frames(self.module, shape.image_size, max(self.counts), self.device, self.dtype)
        self.layers = packed_layers(self.tower)
        self.ways = EncodeWays(self.module, self.tower, self.layers, self.device)
        self.results: dict[str, Any] = {"rows": [], "kernels": [], "errors": {}, "ways": {}, "profile": []}
        tokens, parameters = self.tower.num_tokens, sum(weight.numel() for weight in self.module.parameters())
        endless = dataclasses.replace(self.method, interval=None)
        self.floor, self.interval_floor = endless.cost(self.tower), self.method.cost(self.tower)
        gpu = self.device.type == "cuda"
        self.card = {
            "tower": f"{shape.name}: {len(self.layers)} layers, {tokens} tokens, {self.tower.dim} wide",
            "parameters": parameters,
            "weight_bytes": parameters * torch.empty((), dtype=self.dtype).element_size(),
            "method": f"interval {options.interval}, {self.method.recomputed_tokens(self.tower)} tokens recomputed",
            "rounded_tokens": self.rounded.recomputed_tokens(self.tower),
            "reference_bytes_a_stream": (3 * len(self.layers) + 1)
            * tokens
            * self.tower.dim
            * self.frames[0].element_size(),
            "selective_floor": round(self.floor, 4),
            "rounded_floor": round(dataclasses.replace(self.rounded, interval=None).cost(self.tower), 4),
            "interval_floor": round(self.interval_floor, 4),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if gpu else platform.machine(),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "seed": options.seed,
        }

    # --------------------------------------------------------------------------------------------------- in order

    def measure(self) -> None:
        """The important first; what does not fit into the seconds is left out and named."""
        kernels = self.device.type == "cuda" or self.options.kernels
        ends = list(dict.fromkeys((max(self.counts), min(self.counts))))
        best = {count: {"whole": "torch", "some": "torch"} for count in self.counts}
        if kernels:
            for count in ends:
                self._stage(f"kernels, {count}", lambda count=count: best[count].update(self._kernel_table(count)))
            for count in self.counts:
                best[count] = best[count if count in ends else ends[0]]
            self.results["ways"] = best
        ours = {
            count: Ways(rows.vision_kernels(), way["whole"], way["some"]) if kernels else Ways()
            for count, way in best.items()
        }
        whole = best[ends[0]]["whole"]
        plain = Ways(None, whole if whole in ("torch", *head_attention.BACKENDS) else "torch")
        for count in [*ends, *(c for c in self.counts if c not in ends)]:
            self._stage(f"{count} streams", lambda count=count: self._times(count, plain, ours[count]))
            if count in ends and not self.options.no_compile and self.options.only == "all":
                self._stage(f"{count} streams, compiled", lambda count=count: self._compiled(count, plain))
        self._stage("errors", lambda: self._errors(ours[ends[-1]]))
        if kernels:
            self._stage("prepared", lambda: self._served(ends[0], ours[ends[0]]))
        self._summary()

    def _stage(self, name: str, run: Callable[[], None]) -> None:
        left = self.options.seconds - (time.perf_counter() - self.began)
        if left <= 0:
            self.results.setdefault("left_out", []).append(name)
            print(f"left out: {name} (no seconds left)", flush=True)
            return
        began = time.perf_counter()
        try:
            run()
        except Exception as error:  # what else can be measured is, and the failure is in the result
            self.results.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"[{name}: {time.perf_counter() - began:.1f} s, {left:.0f} s were left]", flush=True)

    def _times(self, count: int, plain: Ways, ours: Ways) -> None:
        frames = [frame[:count].contiguous() for frame in self.frames]
        shared = dataclasses.replace(self.method, selection="shared")
        actions = {}
        if self.options.only == "all":
            published = Published(self.module.encoder.layers, self.method.recomputed_tokens(self.tower))
            actions |= {
                ("dense", "stock eager"): self.ways.moving(frames, self.ways.stock),
                ("selective", "published eager"): self.ways.moving(frames, published.selective, published.whole),
                ("dense", "eager"): self.ways.moving(frames, self.ways.dense),
                ("selective", "eager"): self.ways.selective(frames, self.method),
                ("dense", "graph"): self.ways.moving(frames, self.ways.dense, graph=True),
                ("selective", "graph"): self.ways.selective(frames, self.method, graph=True),
                ("dense", "packed, plain"): self.ways.packed(frames, Full(), plain),
                ("selective", "packed, plain"): self.ways.packed(frames, self.method, plain),
            }
        if ours.rows is not None:
            actions |= {
                ("dense", "kernels+graph"): self.ways.packed(frames, Full(), ours),
                ("selective", "kernels+graph"): self.ways.packed(frames, self.method, ours),
                ("rounded", "kernels+graph"): self.ways.packed(frames, self.rounded, ours),
                ("shared", "kernels+graph"): self.ways.packed(frames, shared, ours),
                ("refresh", "kernels+graph"): self.ways.packed(frames, self.method, ours, whole=count),
            }
            if (some := count - count // (self.method.interval or count)) < count:
                actions["mixed", "kernels+graph"] = self.ways.packed(frames, self.method, ours, whole=count - some)
        self._time(count, actions)
        if self.device.type == "cuda" and count in (max(self.counts), min(self.counts)):
            for frame in ("dense", "selective", "refresh"):
                self._profile(count, frame, actions[frame, "kernels+graph"])

    def _profile(self, count: int, frame: str, action: Action) -> None:
        """Microseconds and launches a layer by kernel, the longest first; of one step."""
        ready = action.prepare(0)
        torch.cuda.synchronize(self.device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            action.run(0, ready)
            torch.cuda.synchronize(self.device)
        layers = len(self.layers)
        spent = [(e.key, e.self_device_time_total / layers, e.count / layers) for e in profiler.key_averages()]
        spent = sorted((kernel for kernel in spent if kernel[1]), key=lambda kernel: -kernel[1])
        total, launches = sum(us for _, us, _ in spent), sum(times for *_, times in spent)
        print(f"\na {frame} layer, {count} streams: {total:.1f} us in {launches:.1f} kernels", flush=True)
        for name, us, times in spent[:SHOWN]:
            print(f"{us:8.2f} us {times:5.2f} x  {name[:110]}", flush=True)
        listed = [[name[:90], round(us, 2), round(times, 2)] for name, us, times in spent[:SHOWN]]
        row = {"streams": count, "frame": frame, "us": round(total, 1), "launches": round(launches, 2)}
        self.results["profile"].append(row | {"kernels": listed})

    def _compiled(self, count: int, plain: Ways) -> None:
        ways = dataclasses.replace(plain, compiled="inductor")
        frames = [frame[:count].contiguous() for frame in self.frames]
        with torch._dynamo.config.patch(recompile_limit=64):
            self._time(
                count,
                {
                    ("dense", "compile+graph"): self.ways.packed(frames, Full(), ways),
                    ("selective", "compile+graph"): self.ways.packed(frames, self.method, ways),
                },
            )

    def _served(self, count: int, ours: Ways) -> None:
        """Whole steps as the engine makes them, states and all, streams in every phase of the interval."""
        began = time.perf_counter()
        made: list[str] = []
        dense = PreparedEncoder(
            self.tower,
            PackedTower(self.layers, StepPlan(), ours),
            lambda *_: [True] * count,
            self.frames[0][0],
            count,
            made.append,
        )
        sparse = PreparedEncoder(
            self.tower,
            PackedTower(self.layers, self.method.plan(self.tower), ours),
            self.method._refresh_flags,
            self.frames[0][0],
            count,
            made.append,
        )
        self.results["prepared"] = {"steps": len(made), "seconds": round(time.perf_counter() - began, 1)}
        states = [self.method.new_state() for _ in range(count)]
        plain = [Full().new_state() for _ in range(count)]
        sparse.encode(self.frames[0][:count], states)
        for number, state in enumerate(states):
            state.age = 1 + number % (self.method.interval or 1)
        self._time(
            count,
            {
                ("dense", "prepared"): Action(lambda n: None, lambda n, _: dense.encode(self._moment(n, count), plain)),
                ("mixed", "prepared"): Action(
                    lambda n: None, lambda n, _: sparse.encode(self._moment(n, count), states)
                ),
            },
        )

    def _moment(self, turn: int, count: int) -> Tensor:
        return self.frames[turn % MOMENTS][:count]

    # ------------------------------------------------------------------------------------------------- measurements

    def _time(self, count: int, actions: dict[tuple[str, str], Action]) -> None:
        named = {f"{frame}, {way}": action for (frame, way), action in actions.items()}
        timed = time_in_turns(named, self.options.repeats, self.device, lambda: None)
        for (frame, way), name in zip(actions, named, strict=True):
            row = {
                "streams": count,
                "frame": frame,
                "way": way,
                "ms": timed[f"{name}_ms"],
                "p95_ms": timed[f"{name}_p95_ms"],
            }
            self.results["rows"].append(row)
            dense = self._ms(count, "dense", way)
            beside = f"{row['ms'] / dense:8.3f} of dense" if dense and frame != "dense" else ""
            print(
                f"{count:3d} {frame:10s} {way:16s} {row['ms']:8.2f} ms  p95 {row['p95_ms']:8.2f} {beside}", flush=True
            )

    def _ms(self, count: int, frame: str, way: str) -> float | None:
        way = {"published eager": "stock eager"}.get(way, way) if frame == "dense" else way
        found = [r["ms"] for r in self.results["rows"] if (r["streams"], r["frame"], r["way"]) == (count, frame, way)]
        return found[0] if found else None

    def _errors(self, ours: Ways) -> None:
        """Relative errors against float32 arithmetic on the same weights and frames, two streams."""
        two = min(2, len(self.frames[0]))
        frames = [frame[:two].contiguous() for frame in self.frames[:3]]
        exact_tower = take_apart(twin(self.module).float())
        exact, states = dataclasses.replace(self.method, interval=None), []
        results: dict[str, list[Tensor]] = {}
        for name, tower, dtype in (("float32", exact_tower, torch.float32), ("eager", self.tower, self.dtype)):
            states = [exact.new_state() for _ in range(two)]
            results[name] = [exact.encode(tower, frame.to(dtype), states).hidden.float() for frame in frames]
        for name, ways in (("kernels", ours), ("packed, plain", Ways())):
            packed = PackedTower(self.layers, exact.plan(self.tower), ways)
            prepared = PreparedEncoder(self.tower, packed, exact._refresh_flags, frames[0][0], two, lambda _: None)
            states = [exact.new_state() for _ in range(two)]
            results[name] = [prepared.encode(frame, states).hidden.float() for frame in frames]
        wanted = results.pop("float32")
        for name, outputs in results.items():
            errors = [float((o - w).norm() / w.norm()) for o, w in zip(outputs, wanted, strict=True)]
            self.results["errors"][name] = [round(error, 5) for error in errors]
            print(
                f"relative error to float32, {name}: dense {errors[0]:.5f}, selective {errors[1]:.5f} {errors[2]:.5f}"
            )
        print("(selective errors include tokens that rounding chose otherwise)", flush=True)

    def _kernel_table(self, count: int) -> dict[str, str]:
        """Every kernel beside plain PyTorch, and the fastest ways where there are several."""
        best = {}
        print(f"\nkernels at {count} streams, microseconds a call", flush=True)
        for name, ways in kernel_cases(self, count).items():
            row = {way: self._microseconds(call) for way, call in ways.items()}
            self.results["kernels"].append({"name": name, "streams": count} | row)
            print(f"{name:24s} " + "  ".join(f"{way} {us}" for way, us in row.items()), flush=True)
            if name in CHOICES:
                timed = {way: us for way, us in row.items() if isinstance(us, float)}
                best[CHOICES[name]] = min(timed, key=lambda way: timed[way])
        print(f"{count} streams from here on: {best}", flush=True)
        return best

    def _microseconds(self, call: Callable[[], Any]) -> float | str:
        def many(anchor: Tensor) -> tuple[Tensor, ...]:
            for _ in range(CALLS):
                call()
            return (anchor,)

        try:
            step = CapturedStep("kernel", many, [torch.zeros(1, device=self.device)])
            actions = {"call": Action(lambda n: None, lambda n, _: step.replay())}
            timed = time_in_turns(actions, 9, self.device, lambda: None)
        except Exception as error:  # a backend that refuses these sizes is a result, not the end of the bench
            return str(error)[:60]
        return round(timed["call_ms"] * 1000 / CALLS, 2)

    def _summary(self) -> None:
        """The ratios that were promised, with equal treatment, and against the fastest dense way of all."""
        summary = []
        print("\nstreams  way               frame      of dense  floor   refresh  interval mean  floor   mixed step")
        for count in sorted(set(self.counts)):
            dense = [r for r in self.results["rows"] if r["streams"] == count and r["frame"] == "dense"]
            fastest = min((r["ms"] for r in dense if r["way"] != "prepared"), default=None)
            for way, frame in SUMMARY:
                base, some = self._ms(count, "dense", way), self._ms(count, frame, way)
                if not base or not some or not fastest:
                    continue
                refresh = self._ms(count, "refresh", way) or base
                interval = self.method.interval or 1
                mean = (refresh + (interval - 1) * some) / interval
                row: dict[str, Any] = {"streams": count, "way": way, "frame": frame, "ratio": some / base}
                row |= {"refresh": refresh / base, "interval_mean": mean / base}
                if mixed := self._ms(count, "mixed", way):  # streams in every phase, all in one step
                    row["mixed_step"] = mixed / base
                row |= {"of_fastest_dense": some / fastest, "mean_of_fastest_dense": mean / fastest}
                summary.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
                floor = self.card["rounded_floor"] if frame == "rounded" else self.floor
                print(
                    f"{count:7d}  {way:16s} {frame:10s} {some / base:8.3f} {floor:6.3f} {refresh / base:9.3f} "
                    f"{mean / base:14.3f} {self.interval_floor:6.3f} {row.get('mixed_step', 0.0):12.3f}"
                )
        self.results["summary"] = summary
        for row in self.results["rows"]:
            row["ms"], row["p95_ms"] = round(row["ms"], 4), round(row["p95_ms"], 4)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llava-onevision-7b", help="whose vision tower: a name or a local folder")
    parser.add_argument("--streams", default="1,4,16", help="streams in a batch, by commas")
    parser.add_argument("--ratio", type=float, default=0.25, help="share of the tokens recomputed")
    parser.add_argument("--interval", type=int, default=4, help="every how many frames one is computed whole")
    parser.add_argument(
        "--only", default="all", choices=("all", "kernels"), help="leave op by op and compiled rows out"
    )
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=150.0, help="nothing new is begun after so many seconds")
    parser.add_argument("--layers", type=int, default=0, help="only the first layers of the tower (0: all)")
    parser.add_argument("--kernels", action="store_true", help="without a GPU, too (in Triton's interpreter; slow)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
