"""Dense and selective encode times at the real sizes of well-known models, with equal treatment, beside arithmetic.

    python -m benchmarks.encode_sizes --packed --streams 16 --seconds 100

Weights are random and of the language model only one layer is made: the tower is what is timed, and its work does not
depend on what it sees. Every stream shows its own frame. Dense and selective are treated alike in every row:

- op by op, or (`--graph`) the same captured as one CUDA graph;
- `--packed` (with `--graph`, and first): in packed form with our kernels, as one CUDA graph. These rows also say which
  attention was fastest, how far results are from the plain ones, and which kernels the time of a layer goes to;
- `--compile`: the layers of both go through the compiler first, and the share is taken of the faster dense, compiled or
  not (both are printed).

One JSON line a row; a row that fails says so, and the next one is begun, unless it has stopped the GPU.
"""

import argparse
import dataclasses
import functools
import gc
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from onlooker.cli.timing import Action, time_in_turns
from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.core.contracts.packed import PackedLayer
from onlooker.encode._layer import run_layer
from onlooker.encode._packed import PackedTower, References, StepPlan, fastest_ways, packed_layers
from onlooker.encode._reference import CacherState, Reference, SideBySide, side_by_side
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.head_attention import BACKENDS, IN_PLACE, attend_in_place
from onlooker.kernels.rows import Stored, ValueRows, vision_kernels
from onlooker.models import SHAPES
from onlooker.models._loading import choose_device, choose_dtype
from onlooker.models._qwen_pixels import MOST_FRAME_TOKENS, FittedPixels
from onlooker.models._qwen_random import random_vision
from onlooker.models._shapes import QwenShape

CALLS = 5
"""Calls of an attention in one graph: one alone is short."""
WHOLE = (*BACKENDS, "split")
"""Ways of whole frames' attention that are timed."""
WINDOW = 64
"""Tokens of a whole window."""
SHOWN = 16
"""Kernels of a layer that are listed, the longest first."""


def main() -> None:
    """Time every combination."""
    options = _options()
    bench, failed = Bench(options), 0
    with torch.no_grad():
        for way in bench.ways:
            for case in bench.cases():
                row = bench.row(case, way)
                failed += "failed" in row
                print(json.dumps(row), flush=True)
    if failed:
        raise SystemExit(f"{failed} rows failed")


@dataclasses.dataclass
class Case:
    """One tower at one frame size, and two moments of every stream."""

    name: str
    frame: str
    tower: VisionTower
    hidden: list[Tensor]
    """Embedded frames, `[streams, tokens, dim]` of either moment."""
    mlp: Callable[[Tensor], Tensor]
    """The stock MLP of the first layer."""
    layers: Callable[[], Any]
    """The tower's packed layers, made once for all rows that need them."""

    @property
    def streams(self) -> int:
        return len(self.hidden[0])


class Bench:
    """What is asked for, the clock, and how each way is timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.perf_counter()
        self.device = choose_device(options.device)
        self.dtype = choose_dtype(options.dtype, self.device)
        self.method = STCPublished(interval=None, recompute_ratio=options.ratio)
        self.graph = options.graph or options.packed
        self.ways = [*(["packed"] if options.packed else []), "compiled" if options.compile else "op by op"]

    def cases(self) -> Iterator[Case]:
        """Every tower, frame size and number of streams."""
        for name in self.options.model:
            torch.manual_seed(self.options.seed)
            shape = SHAPES[name]
            if not isinstance(shape, QwenShape):
                raise SystemExit(f"{name}: use onlooker bench encode for models of one frame size")
            shape = dataclasses.replace(shape, vision_layers=self.options.layers or shape.vision_layers)
            vision = random_vision(shape, self.dtype, self.device)
            for frame in self.options.frame:
                rows, cols = (int(side) for side in frame.split("x"))
                pixels = FittedPixels((0, 0), factor=vision.factor, max_pixels=MOST_FRAME_TOKENS * vision.factor**2)
                fitted = pixels.fit(rows, cols)
                tower = vision.tower(*vision.patches(fitted))
                layers = functools.cache(functools.partial(packed_layers, tower))
                for streams in (int(part) for part in self.options.streams.split(",")):
                    shown = torch.randn(2, streams, 3, *fitted, device=self.device)
                    hidden = [vision.embed_patches(moment).contiguous() for moment in shown]
                    yield Case(name, frame, tower, hidden, vision.module.blocks[0].mlp, layers)

    def row(self, case: Case, way: str) -> dict[str, Any]:
        """One line of the result, whatever happens: device time is rare, so what else can be measured is."""
        row: dict[str, Any] = {
            "model": case.name,
            "frame": case.frame,
            "streams": case.streams,
            "patches": case.tower.num_tokens,
            "way": way,
        }
        begun = time.perf_counter()
        if self.options.seconds and begun - self.began > self.options.seconds:
            return row | {"left_out": f"no seconds left after {self.options.seconds:.0f} s: raise --seconds"}
        measure = self._packed if way == "packed" else self._plain
        try:
            row |= measure(case, compiled=way == "compiled")
        except Exception as error:
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}"[:400]
            if self._gpu_stopped():
                given = f"--model {case.name} --frame {case.frame} --streams {case.streams}"
                raise SystemExit(
                    f"{json.dumps(row)}\nthe GPU takes no more work from this process, so all that follows would fail; "
                    f"given: {given}; run the others without it, and it alone under compute-sanitizer"
                ) from error
        gc.collect()  # graphs hold memory, and an exception holds its frames
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if "failed" not in row:
            dense = min(row["dense_ms"], row.get("uncompiled_dense_ms", row["dense_ms"]))
            row["selective_of_dense"] = row["selective_ms"] / dense
        return row | {
            "flop_floor": self.method.cost(case.tower),
            "recomputed_tokens": self.method.recomputed_tokens(case.tower),
            "ratio": self.options.ratio,
            "graph": self.graph,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "seed": self.options.seed,
            "bench_seconds": round(time.perf_counter() - begun, 1),
        }

    # ------------------------------------------------------------------------------------------------------ packed

    def _packed(self, case: Case, compiled: bool) -> dict[str, Any]:
        tower, layers = case.tower, case.layers()
        ways, calls = fastest_ways(case.hidden[0]), {}
        if ways.rows is not None:
            calls = self._calls(case, layers)
            best = {kind: min(times, key=times.__getitem__) for kind, times in calls.items() if times}
            fastest = {
                "whole_attention": best.get("whole"),
                "some_attention": best.get("some"),
            }
            ways = dataclasses.replace(ways, **{kind: way for kind, way in fastest.items() if way})
        taps = tuple(sorted(tower.tap_layers))
        dense = PackedTower(layers, StepPlan(), ways, taps)
        selective = PackedTower(layers, self.method.plan(tower), ways, taps)
        old, kept = _references(selective, case.hidden[0])
        actions = {
            "dense": self._step(dense, case.hidden[1], None),
            "selective": self._step(selective, case.hidden[1], old),
        }
        result: dict[str, Any] = self._times({name: step.replay for name, step in actions.items()})
        assert kept, "addresses do not keep their tensors alive"
        return result | {
            "ways": [ways.whole_attention, ways.some_attention],
            "calls_us": calls,
            "errors": self._errors(case, {name: step.replay()[0] for name, step in actions.items()}),
            "profile": {name: self._profile(step, len(layers)) for name, step in actions.items()},
        }

    def _step(self, packed: PackedTower, hidden: Tensor, old: References | None) -> CapturedStep:
        chosen = packed.chosen(hidden, 0 if packed.plan.count else len(hidden))

        def run(shown: Tensor) -> tuple[Tensor, ...]:
            output, _, taps = packed.run(shown, chosen, old)
            return (output, *taps)

        return CapturedStep("a packed step", run, [hidden])

    def _calls(self, case: Case, layers: Sequence[PackedLayer]) -> dict[str, dict[str, float]]:
        """Microseconds of the calls of a layer that can be made in several ways; ways that fail are left out."""
        tower, count, kernels = case.tower, self.method.recomputed_tokens(case.tower), vision_kernels()
        chosen = PackedTower(layers, self.method.plan(tower)).chosen(case.hidden[0], 0)
        chosen.choose(torch.rand(case.streams, tower.num_tokens, device=self.device), None)
        keys, queries, stored = (torch.randn_like(case.hidden[0]) for _ in range(3))
        some = queries[:, :count].contiguous()
        addresses = torch.tensor([each.data_ptr() for each in stored], device=self.device)
        mixed = ValueRows(some.flatten(0, 1), chosen.rows, Stored(addresses=addresses), 0)
        everywhere = next((layer for layer in layers if layer.heads is not None), None)
        inside = next((layer for layer in layers if layer.windows is not None), None)
        cases: dict[str, dict[str, Callable[[], Tensor]]] = {}
        if everywhere is not None and everywhere.heads is not None:
            heads, attend = everywhere.heads, everywhere.attend
            cases["whole"] = {way: functools.partial(attend, queries, keys, keys, way) for way in WHOLE}
            cases["some"] = {
                way: functools.partial(attend_in_place, some, keys, mixed, *heads, way) for way in IN_PLACE
            } | {way: lambda way=way: attend(some, keys, mixed.fill(kernels), way) for way in BACKENDS}
        if inside is not None and inside.windows is not None:
            cases["windows, whole"] = {"kernel": functools.partial(inside.attend, queries, keys, keys, "split")}
            cases["windows, some"] = {"kernel": functools.partial(inside.windows, some, keys, mixed, chosen, kernels)}
            if everywhere is not None and tower.num_tokens % WINDOW == 0:
                # For comparison: the library's attention, if windows lay one after the other, which they do not.
                q, k = (part.view(-1, WINDOW, tower.dim) for part in (queries, keys))
                for way in BACKENDS:
                    cases["windows, whole"][way] = functools.partial(everywhere.attend, q, k, k, way)
        rows = queries.flatten(0, 1)
        cases["MLP, whole"] = {
            "stock": functools.partial(case.mlp, rows),
            "packed": functools.partial(layers[0].feed, rows),
        }
        timed = {
            kind: {way: self._microseconds(f"{kind}: {way}", call) for way, call in ways.items()}
            for kind, ways in cases.items()
        }
        assert stored.data_ptr() and some.data_ptr(), "addresses do not keep their tensors alive"
        return {kind: {way: us for way, us in times.items() if us is not None} for kind, times in timed.items()}

    def _microseconds(self, name: str, call: Callable[[], Tensor]) -> float | None:
        def many(anchor: Tensor) -> tuple[Tensor, ...]:
            for _ in range(CALLS):
                call()
            return (anchor,)

        try:
            step = CapturedStep(name, many, [torch.zeros(1, device=self.device)])
            timed = self._times({"call": step.replay}, 5)
        except Exception as error:  # a backend that refuses these sizes is a result, not the end of the bench
            if self._gpu_stopped():
                raise
            print(f"left out: {name}: {str(error)[:200]}", flush=True)
            return None
        return round(timed["call_ms"] * 1000 / CALLS, 1)

    def _gpu_stopped(self) -> bool:
        """True after an access to memory that is not there: whatever the process asks of the GPU then fails."""
        if self.device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def _errors(self, case: Case, outputs: dict[str, Tensor]) -> dict[str, float]:
        """Relative distance of a stream's outputs from the plain tower's and the plain method's, same number format."""
        state, frames = self.method.new_state(), [moment[:1] for moment in case.hidden]
        self.method.encode(case.tower, frames[0], [state])
        wanted = {
            "dense": Full().encode(case.tower, frames[1], [Full().new_state()]).hidden,
            "selective": self.method.encode(case.tower, frames[1], [state]).hidden,
        }
        return {
            name: round(float((outputs[name][:1] - tensor).float().norm() / tensor.float().norm()), 5)
            for name, tensor in wanted.items()
        }

    def _profile(self, step: CapturedStep, layers: int) -> dict[str, list[float]]:
        """Microseconds and launches a layer, by kernel, the longest first; of one replay."""
        if self.device.type != "cuda":
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            step.replay()
            torch.cuda.synchronize()
        spent = [(event.key[:90], event.self_device_time_total, event.count) for event in profiler.key_averages()]
        longest = sorted(spent, key=lambda kernel: -kernel[1])[:SHOWN]
        return {name: [round(us / layers, 2), round(count / layers, 2)] for name, us, count in longest}

    # ------------------------------------------------------------------------------------------------------- plain

    def _plain(self, case: Case, compiled: bool) -> dict[str, Any]:
        """The layers as they are, op by op or compiled."""
        tower, hidden, method = case.tower, case.hidden, self.method
        plain = [Full().new_state() for _ in range(case.streams)]
        states = [method.new_state() for _ in range(case.streams)]
        method.encode(tower, hidden[0], states)

        def dense() -> Tensor:
            return Full().encode(tower, hidden[1], plain).hidden

        def selective() -> Tensor:
            return method.encode(tower, hidden[1], [state.fork() for state in states]).hidden

        actions: dict[str, Callable[[], Tensor]] = {"dense": dense, "selective": selective}
        if compiled:
            actions = {**_compiled(tower, hidden[1], method, states), "uncompiled_dense": dense}
        if not self.graph:
            return self._times(actions)
        steps = {name: CapturedStep(name, _hidden_of(action), [hidden[1]]) for name, action in actions.items()}
        return self._times({name: step.replay for name, step in steps.items()})

    def _times(self, actions: dict[str, Callable[[], Any]], repeats: int = 0) -> dict[str, float]:
        """Median and p95 milliseconds of one step of all streams, in turns."""
        in_turns = {name: Action(lambda n: None, lambda n, _, run=run: run()) for name, run in actions.items()}
        return time_in_turns(in_turns, repeats or self.options.repeats, self.device, lambda: None)


def _references(packed: PackedTower, hidden: Tensor) -> tuple[References, list[list[Tensor]]]:
    """What every stream remembers of its first frame, by address if there are kernels, and the tensors themselves."""
    streams = len(hidden)
    kinds = [[hidden.new_empty(count, *hidden.shape[1:]) for _ in range(streams)] for count in packed.kept]
    if packed.ways.rows is None:
        old = References(*(Stored(torch.stack(tensors)) for tensors in kinds))
    else:
        tables = [torch.tensor([t.data_ptr() for t in tensors], device=hidden.device) for tensors in kinds]
        old = References(*(Stored(addresses=table) for table in tables))
    packed.run(hidden, packed.chosen(hidden, streams), old)
    return old, kinds


def _compiled(
    tower: VisionTower, hidden: Tensor, method: STCPublished, states: list[CacherState]
) -> dict[str, Callable[[], Tensor]]:
    """Dense and selective steps whose layers are compiled: weights are inputs, so layers of a kind share their code."""
    torch.compiler.reset()  # shapes of earlier rows would count against the limit of versions

    @torch.compile(dynamic=False)
    def whole(layer: VisionLayer, tokens: Tensor) -> Tensor:
        return run_layer(layer, tokens).output

    @torch.compile(dynamic=False)
    def partly(layer: VisionLayer, tokens: Tensor, gate: Tensor, values: Tensor, sums: Tensor) -> Tensor:
        old = SideBySide(gate=[gate], values=[values], sums=[sums], waits=[], before=[], behind=[])
        return method._selective_layer(tower, layer, tokens, None, old, 0, Reference())[0]

    def dense() -> Tensor:
        tokens = hidden
        for layer in tower.layers:
            tokens = whole(layer, tokens)
        return tokens

    def selective() -> Tensor:
        tokens, old = hidden, side_by_side(states, method.selective_layers(tower))
        for layer, gate, values, sums in zip(tower.layers, old.gate, old.values, old.sums, strict=True):
            tokens = partly(layer, tokens, gate, values, sums)
        return tokens

    return {"dense": dense, "selective": selective}


def _hidden_of(action: Callable[[], Tensor]) -> Callable[[Tensor], tuple[Tensor]]:
    return lambda hidden: (action(),)  # the frames are `hidden` itself, so that nothing has to be copied


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    qwen = [name for name, shape in SHAPES.items() if isinstance(shape, QwenShape)]
    parser.add_argument("--model", nargs="+", default=["qwen2.5-vl-7b", "qwen3-vl-8b"], choices=qwen)
    parser.add_argument("--frame", nargs="+", default=["448x448", "720x1280"], help="rows x cols")
    parser.add_argument("--streams", default="1,16", help="streams in a batch, by commas")
    parser.add_argument("--ratio", type=float, default=0.25, help="share of the tokens recomputed")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--layers", type=int, default=0, help="only the first layers of the tower (0: all), to try it out"
    )
    parser.add_argument("--graph", action="store_true", help="replay dense and selective as CUDA graphs")
    parser.add_argument("--packed", action="store_true", help="also in packed form, with kernels; all as CUDA graphs")
    parser.add_argument("--compile", action="store_true", help="compile the layers of both")
    parser.add_argument("--seconds", type=float, default=0, help="start no further row after this long (0: no limit)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
