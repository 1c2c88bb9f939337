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
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from onlooker.cli.timing import Action, time_in_turns
from onlooker.core.contracts import VisionTower
from onlooker.encode._packed import PackedTower, Plan, References, Ways, packed_layers
from onlooker.encode._prepared import PreparedEncoder
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels import deviation, head_attention, rows, selection
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.rows import Stored
from onlooker.models._loading import choose_device, choose_dtype
from onlooker.models._pixels import Pixels
from onlooker.models._shapes import Shape, shape_of
from onlooker.models._siglip import embed, take_apart
from onlooker.world import make_episode

MOMENTS = 6
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
        self.module = _random_tower(shape, options.layers, self.device, self.dtype)
        self.tower: VisionTower = take_apart(self.module)
        self.method = STCPublished(options.interval, options.ratio)
        self.rounded = dataclasses.replace(self.method, round_to=ROUND_TO)
        self.frames = self._frames(shape, max(self.counts))
        self.layers = packed_layers(self.tower)
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
            "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}",
            "seed": options.seed,
        }

    def _frames(self, shape: Shape, streams: int) -> list[Tensor]:
        """Embedded frames of moving pictures, one `[streams, tokens, dim]` per moment."""
        pixels = Pixels((shape.image_size, shape.image_size))
        clips = [list(make_episode(seed, "test", MOMENTS).frames(fps=1.0)) for seed in range(min(streams, 8))]
        moments = []
        for moment in range(MOMENTS):
            # Beyond eight clips, streams show the first ones at other moments.
            images = [clips[s % 8][(moment + s // 8) % MOMENTS].image for s in range(streams)]
            moments.append(embed(self.module, torch.stack(pixels.prepare(images, self.device)).to(self.dtype)))
        return moments

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
        except Exception as error:  # a lease is short: what else can be measured is, and the failure is in the result
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
                ("dense", "stock eager"): self._moving(frames, self._stock),
                ("selective", "published eager"): self._moving(frames, published.selective, published.whole),
                ("dense", "eager"): self._moving(frames, self._dense),
                ("selective", "eager"): self._selective(frames, self.method),
                ("dense", "graph"): self._moving(frames, self._dense, graph=True),
                ("selective", "graph"): self._selective(frames, self.method, graph=True),
                ("dense", "packed, plain"): self._packed(frames, Full(), plain),
                ("selective", "packed, plain"): self._packed(frames, self.method, plain),
            }
        if ours.rows is not None:
            actions |= {
                ("dense", "kernels+graph"): self._packed(frames, Full(), ours),
                ("selective", "kernels+graph"): self._packed(frames, self.method, ours),
                ("rounded", "kernels+graph"): self._packed(frames, self.rounded, ours),
                ("shared", "kernels+graph"): self._packed(frames, shared, ours),
                ("refresh", "kernels+graph"): self._packed(frames, self.method, ours, whole=count),
            }
            if (some := count - count // (self.method.interval or count)) < count:
                actions["mixed", "kernels+graph"] = self._packed(frames, self.method, ours, whole=count - some)
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
                    ("dense", "compile+graph"): self._packed(frames, Full(), ways),
                    ("selective", "compile+graph"): self._packed(frames, self.method, ways),
                },
            )

    def _served(self, count: int, ours: Ways) -> None:
        """Whole steps as the engine makes them, states and all, streams in every phase of the interval."""
        began = time.perf_counter()
        made: list[str] = []
        dense = PreparedEncoder(
            self.tower,
            PackedTower(self.layers, Plan(), ours),
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

    # --------------------------------------------------------------------------------------------- ways to be timed

    def _stock(self, hidden: Tensor) -> Tensor:
        return self.module.encoder(inputs_embeds=hidden).last_hidden_state

    def _dense(self, hidden: Tensor) -> Tensor:
        return Full().encode(self.tower, hidden, [Full().new_state()] * len(hidden)).hidden

    def _moving(
        self,
        frames: list[Tensor],
        run: Callable[[Tensor], Tensor],
        begin: Callable[[Tensor], Any] = lambda hidden: None,
        graph: bool = False,
    ) -> Action:
        """Another moment at every turn; copying it into place is not timed."""
        begin(frames[0])
        if not graph or self.device.type != "cuda":
            return Action(lambda turn: frames[1 + turn % (MOMENTS - 1)], lambda turn, hidden: run(hidden))
        step = CapturedStep("bench", lambda hidden: (run(hidden),), [frames[0].clone()])
        return Action(
            lambda turn: step.inputs[0].copy_(frames[1 + turn % (MOMENTS - 1)]), lambda turn, _: step.replay()
        )

    def _selective(self, frames: list[Tensor], method: STCPublished, graph: bool = False) -> Action:
        endless = dataclasses.replace(method, interval=None)
        states = [endless.new_state() for _ in range(len(frames[0]))]
        endless.encode(self.tower, frames[0], states)

        def run(hidden: Tensor) -> Tensor:
            return endless.encode(self.tower, hidden, [state.fork() for state in states]).hidden

        return self._moving(frames, run, graph=graph)

    def _packed(self, frames: list[Tensor], method: Full | STCPublished, ways: Ways, whole: int = 0) -> Action:
        """A packed step, captured where it can be, with streams whose reference is the first moment."""
        if isinstance(method, Full):
            packed = PackedTower(self.layers, Plan(), ways)
            every = packed.chosen(frames[0], len(frames[0]))
            return self._moving(frames, lambda hidden: packed.run(hidden, every, None)[0], graph=True)
        packed = PackedTower(self.layers, method.plan(self.tower), ways)
        states = [method.new_state() for _ in range(len(frames[0]))]
        method.encode(self.tower, frames[0], states)
        kinds = [[getattr(state, kind).clone() for state in states] for kind in References._fields]
        if ways.rows is None:
            stored = References(*(Stored(stack=torch.stack(tensors)) for tensors in kinds))
        else:
            tables = [torch.tensor([t.data_ptr() for t in tensors], device=self.device) for tensors in kinds]
            stored = References(*(Stored(addresses=table) for table in tables))
        kept, chosen = kinds, packed.chosen(frames[0], whole)  # addresses do not keep their tensors alive

        def run(hidden: Tensor) -> Tensor:
            assert kept
            return packed.run(hidden, chosen, stored)[0]

        return self._moving(frames, run, graph=True)

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
        exact_tower = take_apart(_twin(self.module).float())
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
        for name, ways in _kernel_cases(self, count).items():
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
        """The ratios that the acceptance names, with equal treatment, and against the fastest dense way of all."""
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


class Published:
    """The published algorithm as its authors' code runs it, op by op: keys projected twice, four tensors a layer, whole
    copies, both norms on all tokens, unsorted choice (paper arXiv 2512.00891 and its code, restated)."""

    def __init__(self, layers: Sequence[Any], count: int) -> None:
        self.layers, self.count = layers, count
        self.kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def whole(self, hidden: Tensor) -> Tensor:
        """A reference frame of every stream."""
        self.kept = []
        for layer in self.layers:
            attention, normed = layer.self_attn, layer.layer_norm1(hidden)
            keys, values = attention.k_proj(normed), attention.v_proj(normed)
            branch = attention.out_proj(self._attend(attention, attention.q_proj(normed), keys, values))
            middle = hidden + branch
            mlp = layer.mlp(layer.layer_norm2(middle))
            self.kept.append((keys, values, branch, mlp))
            hidden = middle + mlp
        return hidden

    def selective(self, hidden: Tensor) -> Tensor:
        """A frame between."""
        for layer, (old_keys, old_values, old_branch, old_mlp) in zip(self.layers, self.kept, strict=True):
            attention, normed = layer.self_attn, layer.layer_norm1(hidden)
            alike = F.cosine_similarity(attention.k_proj(normed), old_keys, dim=-1)
            index = alike.topk(self.count, dim=1, largest=False).indices
            index = index[:, :, None].expand(-1, -1, hidden.shape[-1])
            chosen = normed.gather(1, index)
            queries, keys = attention.q_proj(chosen), attention.k_proj(normed)
            values = old_values.clone().scatter(1, index, attention.v_proj(chosen))
            fresh = attention.out_proj(self._attend(attention, queries, keys, values))
            middle = hidden + old_branch.clone().scatter(1, index, fresh)
            rows = layer.layer_norm2(middle).gather(1, index)
            hidden = middle + old_mlp.clone().scatter(1, index, layer.mlp(rows))
        return hidden

    def _attend(self, attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return head_attention.attend_heads(queries, keys, values, attention.num_heads, attention.scale, "torch")


def _kernel_cases(bench: Bench, count: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Every kernel beside its plain form, at real sizes, on random data."""
    tokens, dim, layer = bench.tower.num_tokens, bench.tower.dim, bench.layers[0]
    few, fewer = (method.recomputed_tokens(bench.tower) for method in (bench.method, bench.rounded))
    some: dict[str, Any] = {"dtype": bench.dtype, "device": bench.device}
    kernels = rows.vision_kernels()
    stack = torch.randn(count, 2, tokens, dim, **some)
    by_stack = Stored(stack=stack)
    by_address = Stored(addresses=torch.tensor([part.data_ptr() for part in stack], device=bench.device))
    hidden, branch = (torch.randn(count * tokens, dim, **some) for _ in range(2))
    chosen = selection.Chosen(0, count, tokens, few, bench.device)
    every = selection.Chosen(count, 0, tokens, few, bench.device)
    alike = torch.rand(count, tokens, device=bench.device)
    chosen.choose(alike, None)
    chosen_fewer = selection.Chosen(0, count, tokens, fewer, bench.device)
    chosen_fewer.choose(alike, None)
    picked, more = (torch.randn(count * few, dim, **some) for _ in range(2))
    keys, rounded = hidden.view(count, tokens, dim), picked[: count * fewer]
    head_rows = torch.randn(count * tokens, 2 * dim, **some)
    whole = head_rows.view(count, tokens, 2 * dim)
    asked = head_rows[: count * few].view(count, few, 2 * dim)
    mixed = rows.ValueRows(head_rows[: count * few, dim:], chosen.rows, by_address, 0)
    plain_mixed = dataclasses.replace(mixed, stored=by_stack)
    attention, mlp = bench.module.encoder.layers[0].self_attn, bench.module.encoder.layers[0].mlp
    norm, asking = layer.norm, asked[..., :dim]
    num_heads, scale = attention.num_heads, attention.scale

    def both(run: Callable[[Any, Stored], Any]) -> dict[str, Callable[[], Any]]:
        return {"plain": lambda: run(None, by_stack), "kernel": lambda: run(kernels, by_address)}

    def linear(some: selection.Chosen) -> Callable[[], Any]:
        return lambda: F.linear(rows.gather_rows(hidden, some.flat, kernels), *layer.query_value)

    def advance(warps: int) -> Callable[[], Any]:
        return lambda: deviation.advance(hidden, chosen, picked, more, by_address, 0, norm, kernels, warps)

    return {
        "cosine": both(lambda k, stored: selection.cosine(keys, stored, 0, k))
        | {f"{n} warps": lambda n=n: selection.cosine(keys, by_address, 0, kernels, warps=n) for n in (1, 2, 8)},
        "choose": both(lambda k, stored: chosen.choose(alike, k))
        | {tiles: lambda tiles=tiles: chosen.choose(alike, kernels, tiles=tiles) for tiles in selection.TILES},
        "choose and gather": {
            tiles: lambda tiles=tiles: chosen.choose(alike, kernels, hidden, tiles) for tiles in selection.TILES
        },
        "gather rows": both(lambda k, stored: rows.gather_rows(hidden, chosen.flat, k)),
        "fill values": {"plain": lambda: plain_mixed.fill(None), "kernel": lambda: mixed.fill(kernels)},
        "residual + norm, all": both(lambda k, s: rows.residual_norm(hidden, branch, norm, k)),
        "add branch, some": both(lambda k, s: deviation.add_branch(hidden, chosen, picked, s, 0, norm, k)),
        "advance, some": both(lambda k, s: deviation.advance(hidden, chosen, picked, more, s, 0, norm, k))
        | {f"{n} warps": advance(n) for n in (1, 2, 8)},
        "advance, all": both(lambda k, s: deviation.advance(hidden[:0], every, hidden, branch, s, 0, norm, k)),
        "keep keys and values": both(lambda k, s: rows.keep_rows([hidden, head_rows[:, dim:]], [s, s], 0, k)),
        "MLP, all (GELU inside)": {"plain": lambda: mlp(hidden), "inside": lambda: layer.feed(hidden)},
        "MLP, some (GELU inside)": {
            "plain": lambda: mlp(picked),
            "inside": lambda: layer.feed(picked),
            "rounded": lambda: layer.feed(rounded),
        },
        "keys, all": {"one product": lambda: layer.keys(hidden)},
        "queries + values, some": {
            "one product": linear(chosen),
            "rounded": linear(chosen_fewer),
            "two": lambda: (attention.q_proj(picked), attention.v_proj(picked)),
        },
        "attention, whole": {
            way: lambda way=way: layer.attend(whole[..., :dim], keys, whole[..., dim:], way)
            for way in head_attention.WAYS
        },
        # All from the same start: values that lie in two places.
        "attention, some": {
            way: lambda way=way: layer.attend(asking, keys, mixed.fill(kernels), way) for way in head_attention.WAYS
        }
        | {
            way: lambda way=way: head_attention.attend_in_place(asking, keys, mixed, num_heads, scale, way)
            for way in head_attention.IN_PLACE
        },
    }


def _random_tower(shape: Shape, layers: int, device: torch.device, dtype: torch.dtype) -> Any:
    config = SiglipVisionConfig(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        num_hidden_layers=layers or shape.vision_layers,
        hidden_size=shape.vision_dim,
        intermediate_size=shape.vision_mlp,
        num_attention_heads=shape.vision_heads,
        vision_use_head=False,
    )
    with torch.device(device):
        return SiglipVisionModel._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def _twin(module: Any) -> Any:
    with torch.device(next(module.parameters()).device):
        twin = SiglipVisionModel._from_config(module.config, dtype=torch.float32, attn_implementation="sdpa")
    twin.load_state_dict(module.state_dict())
    return twin.eval()


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
