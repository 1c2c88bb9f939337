"""The corrected form by kernels, in steps of fixed shape, made at start for every number of streams they will see."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionTower
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.encode._cost import corrected_flop, dense_flop
from onlooker.encode._prepared import bucket_sizes
from onlooker.encode.stc_cacher._change import STEPS, projection
from onlooker.encode.stc_cacher._prepared import adjacent, put
from onlooker.encode.stc_corrected._even import evened
from onlooker.encode.stc_corrected._layers import CorrectedLayers
from onlooker.encode.stc_corrected._state import SKETCH, CorrectedState, sketched
from onlooker.encode.stc_corrected._step import FLAT
from onlooker.kernels.corrected import CorrectedStep
from onlooker.kernels.corrected_shape import FIELDS, Rules, Shape
from onlooker.kernels.corrected_whole import WholeStep
from onlooker.kernels.graph import CapturedStep

if TYPE_CHECKING:
    from onlooker.encode.stc_corrected import STCCorrected


class _Family:
    """Captured steps of frames of one kind, by number of streams, and the buffers that all of them share."""

    def __init__(self, name: str, layers: CorrectedLayers, shape: Shape, like: Tensor, each: Tensor) -> None:
        self._name, self._layers, self._shape = name, layers, shape
        most, device = shape.streams, like.device
        self.hidden = torch.zeros(most, *like.shape, dtype=like.dtype, device=device)
        self.outputs = torch.zeros(1 + len(layers.taps), *self.hidden.shape, dtype=like.dtype, device=device)
        """Of every tapped layer, then of the last; a tapped last layer comes twice."""
        self._each = each
        self.table = torch.zeros(len(FIELDS), most, dtype=torch.int64, device=device)
        self._signs = projection(shape.dim, device, SKETCH).sign().to(like.dtype)
        self._steps: dict[int, CapturedStep] = {}

    def make(self, streams: int, capture: bool, pool: Any) -> str:
        """Make the step for so many streams; its name."""
        shape = dataclasses.replace(self._shape, streams=streams)
        hidden, table = self.hidden[:streams], self.table[:, :streams]
        if self._name == "partly":
            step = CorrectedStep(shape, table, hidden, self._signs, self._layers.way)
            run = partial(self._layers.some, step=step)
        else:
            step = WholeStep(shape, table, hidden, self._signs)
            run = partial(self._layers.whole, step=step)

        def function(hidden: Tensor) -> tuple[Tensor, ...]:
            for room, made in zip(self.outputs, run(hidden), strict=False):
                room[:streams].copy_(made)
            work = step.times / shape.layers
            return self.outputs[:, :streams], torch.tensordot(self._each, work, 1), work.mean(2).T.contiguous()

        name = f"encode {streams} {self._name}"
        self._steps[streams] = CapturedStep(name, function, (hidden,), pool=pool, capture=capture)
        return name

    def run(self, frames: Tensor, states: Sequence[CorrectedState]) -> tuple[Tensor, Tensor, Tensor]:
        """Frames `[streams, tokens, dim]`: outputs `[taps and last, streams, tokens, dim]`, shares of dense arithmetic
        `[streams, tokens]`, and the work of each stream `[streams, 5]`; they hold until the next step."""
        room = next(size for size in sorted(self._steps) if size >= len(frames))
        self.hidden[: len(frames)].copy_(frames)
        table = torch.zeros(len(FIELDS), room, dtype=torch.int64)
        addresses = [[getattr(state, field).data_ptr() for field in FIELDS] for state in states]
        table[:, : len(frames)] = torch.tensor(addresses).T
        self.table[:, :room].copy_(table, non_blocking=True)
        outputs, shares, work = self._steps[room].replay()
        return outputs[:, : len(frames)], shares[: len(frames)], work[: len(frames)]


class CorrectedEncoder:
    """The corrected form over one tower: captured steps that read and write the streams' references where they are."""

    def __init__(
        self,
        method: "STCCorrected",
        tower: VisionTower,
        like: Tensor,
        max_streams: int,
        on_step: Callable[[str], None],
        way: str,
        capture: bool = True,
    ) -> None:
        self._method, self._tower, self._max_streams = method, tower, max_streams
        layers = CorrectedLayers.of(evened(tower, like), projection(like.shape[1], like.device, SKETCH), way)
        heads = layers.layers[0].heads
        assert heads is not None, "a method asks for this where every token attends to all others"
        shape = Shape(
            streams=max_streams,
            tokens=like.shape[0],
            dim=like.shape[1],
            layers=len(tower.layers),
            heads=heads[0],
            scale=heads[1],
            count=method.recomputed_tokens(tower),
            rules=Rules(
                STEPS, method.look_every, method.salience, FLAT, method.stands_out == "either", method.attend_every
            ),
            group=tower.group,
            pinned=tower.pinned,
        )
        each = [corrected_flop(tower, *kind) / dense_flop(tower) for kind in torch.eye(5).tolist()]
        shares = torch.tensor(each, device=like.device)
        self._families = [_Family(name, layers, shape, like, shares) for name in ("whole", "partly")]
        pool = CapturedStep.new_pool(like.device)
        for size in reversed(bucket_sizes(max_streams)):
            for family in self._families:
                on_step(family.make(size, capture, pool))

    def under(self, method: "STCCorrected") -> "CorrectedEncoder":
        """The same steps, with other rules for when a frame is computed whole."""
        twin = copy.copy(self)
        twin._method = method
        return twin

    @torch.no_grad()
    def encode(self, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """See `contracts.Prepared`."""
        method, tower = self._method, self._tower
        mine: list[Any] = list(states)  # made by the method
        if len(mine) > self._max_streams:
            raise InputError(
                "more streams in one step than were prepared for",
                given=f"{len(mine)}, prepared for {self._max_streams}",
                do="prepare for more streams, or use more steps",
            )
        seen = hidden if method.refresh_share is None else sketched(hidden, True)
        flags = method.refresh_flags(tower, seen, hidden, mine)
        taps = sorted(tower.tap_layers)
        output = torch.empty(1 + len(taps), *hidden.shape, dtype=hidden.dtype, device=hidden.device)
        shares = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        for flag, family in zip((True, False), self._families, strict=True):
            rows = [b for b, other in enumerate(flags) if other is flag]
            if not rows:
                continue
            some = [mine[b] for b in rows]
            if flag:
                for b, state in zip(rows, some, strict=True):
                    state.begin(hidden[b], len(tower.layers), 0, True, method.tau, corrected=False)
            for state in some:
                state.attend_anew()
            made, share, work = family.run(hidden[rows[0] : rows[-1] + 1] if adjacent(rows) else hidden[rows], some)
            put(output, 1, rows, made)
            if not flag:
                put(shares, 0, rows, share)
                for state, one in zip(some, work.clone().unbind(), strict=True):
                    state.work = one
            for state in some:
                waited = state.age if flag else None
                state.age, state.grid = 1 if flag else state.age + 1, tower.grid
                method.follow_budget(tower, state, waited)
        last = len(taps) - (len(tower.layers) - 1 in tower.tap_layers)
        return Encoded(output[last], dict(zip(taps, output, strict=False)), shares, tuple(flags))


__all__ = ["CorrectedEncoder"]
