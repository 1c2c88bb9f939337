"""The method by kernels, in steps of fixed shape that are made at start for every number of streams they will see."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionTower
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.encode._cost import rows_flop
from onlooker.encode._packed import packed_layers
from onlooker.encode._prepared import bucket_sizes
from onlooker.encode.stc_cacher._change import STEPS, projection, sketch
from onlooker.encode.stc_cacher._state import CacherState
from onlooker.encode.stc_cacher._steps import StepLayers
from onlooker.kernels.coded import FIELDS, CodedStep, StepShape
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.rows import vision_kernels

if TYPE_CHECKING:
    from onlooker.encode.stc_cacher import STCCacher


class _Family:
    """Captured steps of frames of one kind, by number of streams, and the buffers that all of them share."""

    def __init__(self, name: str, layers: StepLayers, shape: StepShape, like: Tensor) -> None:
        self._name, self._layers, self._shape = name, layers, shape
        most, device = shape.streams, like.device
        self.hidden = torch.zeros(most, *like.shape, dtype=like.dtype, device=device)
        self.outputs = torch.zeros(1 + len(layers.taps), *self.hidden.shape, dtype=like.dtype, device=device)
        """Of every tapped layer, then of the last; a tapped last layer comes twice."""
        self.table = torch.zeros(len(FIELDS), most, dtype=torch.int64, device=device)
        self._signs = projection(shape.dim, device).sign().to(like.dtype)
        self._steps: dict[int, CapturedStep] = {}

    def make(self, streams: int, capture: bool, pool: Any) -> str:
        """Make the step for so many streams; its name."""
        shape = dataclasses.replace(self._shape, streams=streams)
        hidden, table = self.hidden[:streams], self.table[:, :streams]
        step = CodedStep(shape, table, hidden, self._signs)
        run = self._layers.some if self._name == "partly" else self._layers.whole

        def function(hidden: Tensor) -> tuple[Tensor, ...]:
            for room, made in zip(self.outputs, run(hidden, step), strict=False):
                room[:streams].copy_(made)
            return self.outputs[:, :streams], step.times

        name = f"encode {streams} {self._name}"
        self._steps[streams] = CapturedStep(name, function, (hidden,), pool=pool, capture=capture)
        return name

    def run(self, frames: Tensor, states: Sequence[CacherState]) -> tuple[Tensor, Tensor]:
        """Frames `[streams, tokens, dim]`: outputs `[taps and last, streams, tokens, dim]` and in how many layers each
        token was computed, float32 `[3, streams, tokens]`; both hold until the next step."""
        room = next((size for size in sorted(self._steps) if size >= len(frames)), None)
        if room is None:
            raise InputError(
                "more streams in one step than were prepared for",
                given=f"{len(frames)} {self._name} computed, prepared for {max(self._steps)}",
                do="prepare for more streams, or use more steps",
            )
        self.hidden[: len(frames)].copy_(frames)
        # Pinned, so that the copy does not wait for what was asked of the device before.
        table = torch.zeros(len(FIELDS), room, dtype=torch.int64, pin_memory=self.table.is_cuda)
        kept = [[getattr(state, field) for field in FIELDS] for state in states]
        # What there is no tensor of (scales of references that are not in 8 bits) nobody reads.
        addresses = [[0 if tensor is None else tensor.data_ptr() for tensor in tensors] for tensors in kept]
        table[:, : len(frames)] = torch.tensor(addresses).T
        self.table[:, :room].copy_(table, non_blocking=True)
        outputs, times = self._steps[room].replay()
        return outputs[:, : len(frames)], times[:, : len(frames)]


class CodedEncoder:
    """STC-Cacher over one tower: captured steps that read and write the streams' references where they are."""

    def __init__(
        self,
        method: "STCCacher",
        tower: VisionTower,
        like: Tensor,
        max_streams: int,
        on_step: Callable[[str], None],
        way: str,
        capture: bool = True,
    ) -> None:
        if tower.group > 1 and tower.pinned:
            raise ModelError(
                "stc_cacher has no steps of fixed shape for this tower",
                given="tokens of the whole frame beside groups of neighbours",
                do="run it without graphs",
            )
        self._method, self._tower, self._max_streams = method, tower, max_streams
        layers = StepLayers(packed_layers(tower), tuple(sorted(tower.tap_layers)), vision_kernels(), way)
        shape = StepShape(
            streams=max_streams,
            tokens=like.shape[0],
            dim=like.shape[1],
            layers=len(tower.layers),
            count=method.recomputed_tokens(tower),
            ages=method.look_every,
            steps=STEPS,
            group=tower.group,
            pinned=tower.pinned,
            bits=method.bits(like),
        )
        self._families = [_Family(name, layers, shape, like) for name in ("whole", "partly")]
        pool = CapturedStep.new_pool(like.device)
        for size in reversed(bucket_sizes(max_streams)):
            for family in self._families:
                on_step(family.make(size, capture, pool))

    def under(self, method: "STCCacher") -> "CodedEncoder":
        """The same steps, with other rules for when a frame is computed whole."""
        twin = copy.copy(self)
        twin._method = method
        return twin

    @torch.no_grad()
    def encode(self, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """See `contracts.Prepared`."""
        method, tower, mine = self._method, self._tower, list(states)
        cached: list[CacherState] = mine  # pyright: ignore[reportAssignmentType] - made by the method
        if len(mine) > self._max_streams:
            raise InputError(
                "more streams in one step than were prepared for",
                given=f"{len(mine)}, prepared for {self._max_streams}",
                do="prepare for more streams, or use more steps",
            )
        flags = method.refresh_flags(tower, sketch(hidden), hidden, cached)
        taps = sorted(tower.tap_layers)
        output = torch.empty(1 + len(taps), *hidden.shape, dtype=hidden.dtype, device=hidden.device)
        shares = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        for flag, family in zip((True, False), self._families, strict=True):
            rows = [b for b, other in enumerate(flags) if other is flag]
            if not rows:
                continue
            some = [cached[b] for b in rows]
            if flag:
                bits = method.bits(hidden)
                for b, state in zip(rows, some, strict=True):
                    state.begin(hidden[b], len(tower.layers), method.look_every, bits, method.tau)
            made, times = family.run(hidden[rows[0] : rows[-1] + 1] if adjacent(rows) else hidden[rows], some)
            put(output, 1, rows, made)
            if not flag:
                work = times / len(tower.layers)
                put(shares, 0, rows, self._share(work))
                for state, one in zip(some, work.mean(2).T.contiguous(), strict=True):
                    state.work = one
            for state in some:
                waited = state.age if flag else None
                state.age, state.grid = 1 if flag else state.age + 1, tower.grid
                method.follow_budget(tower, state, waited)
        last = len(taps) - (len(tower.layers) - 1 in tower.tap_layers)
        return Encoded(output[last], dict(zip(taps, output, strict=False)), shares, tuple(flags))

    def _share(self, work: Tensor) -> Tensor:
        """Arithmetic of every token as a share of dense, `[streams, tokens]`, from shares of layers `[3, ...]`."""
        dense = rows_flop(self._tower, 1, 1, 1)
        parts = [rows_flop(self._tower, *one) / dense for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
        return sum((part * row for part, row in zip(parts, work, strict=True)), torch.zeros_like(work[0]))


def adjacent(rows: Sequence[int]) -> bool:
    """Whether these are neighbours in one piece."""
    return rows[-1] - rows[0] + 1 == len(rows)


def put(target: Tensor, axis: int, rows: Sequence[int], source: Tensor) -> None:
    """Write what was made for some streams, in as few copies as there are runs of neighbours."""
    first = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[place - 1] + 1:
            count = place - first
            target.narrow(axis, rows[first], count).copy_(source.narrow(axis, first, count))
            first = place


__all__ = ["CodedEncoder"]
