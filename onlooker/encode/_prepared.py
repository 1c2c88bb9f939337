"""An encoder ready to serve: packed steps of fixed shape, made at start for every number of streams they will see."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionTower
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.encode._packed import PackedTower, References
from onlooker.encode._reference import kept_tensor
from onlooker.kernels.graph import CapturedStep, bucket_sizes
from onlooker.kernels.rows import Stored

KINDS = ("gate", "values", "trail")


@dataclass
class Buckets:
    """Captured steps by (streams that refresh, streams that do not), and the buffers that all of them share."""

    tower: PackedTower
    like: Tensor
    max_streams: int
    on_step: Callable[[str], None]
    capture: bool = True
    steps: dict[tuple[int, int], CapturedStep] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device, most = self.like.device, bucket_sizes(self.max_streams)
        room = 2 * self.max_streams
        self.hidden = torch.zeros(room, *self.like.shape, dtype=self.like.dtype, device=device)
        self.outputs = torch.zeros(1 + len(self.tower.taps), *self.hidden.shape, dtype=self.like.dtype, device=device)
        """The last layer's output, and those of the tapped layers."""
        self.addresses = torch.zeros(len(KINDS), room, dtype=torch.int64, device=device)
        pool = CapturedStep.new_pool(device)
        lower = dict(zip([0, *most], [0, 0, *most], strict=False))  # of each size, the one below it
        for whole in reversed([0, *most]):
            for some in reversed([0, *most] if self.tower.plan.count else [0]):
                fewest = sum(lower[size] + 1 if size else 0 for size in (whole, some))
                if not whole + some or fewest > self.max_streams:
                    continue
                total = whole + some
                inputs = (self.hidden[:total], *(row[:total] for row in self.addresses))
                name = f"encode {whole} whole + {some} partly"
                self.steps[whole, some] = CapturedStep(
                    name, self._runner(inputs[0], whole), inputs, pool=pool, capture=self.capture
                )
                self.on_step(name)

    def _runner(self, hidden: Tensor, whole: int) -> Callable[..., tuple[Tensor, ...]]:
        chosen = self.tower.chosen(hidden, whole)

        def run(hidden: Tensor, *addresses: Tensor) -> tuple[Tensor, ...]:
            stored = References(*(Stored(addresses=each) for each in addresses)) if self.tower.plan.count else None
            output, times, taps = self.tower.run(hidden, chosen, stored)
            # All steps share one buffer for what comes out: of its own, each would keep room for it.
            for room, made in zip(self.outputs, (output, *taps), strict=True):
                room[: len(hidden)].copy_(made)
            return self.outputs[:, : len(hidden)], times

        return run

    def find(self, whole: int, some: int) -> tuple[int, int]:
        """The cheapest step with room for so many. Raises `InputError` when none has."""
        tokens, count = len(self.like), self.tower.plan.count
        fitting = [(w * tokens + s * count, (w, s)) for w, s in self.steps if w >= whole and s >= some]
        if not fitting:
            raise InputError(
                "more streams in one step than were prepared for",
                given=f"{whole} whole and {some} partly computed, prepared for {self.max_streams}",
                do="prepare for more streams, or use more steps",
            )
        return min(fitting)[1]


class PreparedEncoder:
    """A method, one tower and one way to run it. With kernels, through captured steps that read and write the streams'
    references where they are; without, op by op, over copies of them."""

    def __init__(
        self,
        tower: VisionTower,
        packed: PackedTower,
        must_refresh: Callable[[VisionTower, Tensor, Sequence[Any]], list[bool]],
        like: Tensor,
        max_streams: int,
        on_step: Callable[[str], None],
        capture: bool = True,
    ) -> None:
        assert set(packed.taps) == tower.tap_layers, "a tapped layer's output would be missing"
        self._tower, self._packed, self._must_refresh = tower, packed, must_refresh
        self._buckets = None if packed.ways.rows is None else Buckets(packed, like, max_streams, on_step, capture)

    def refreshing(self, must_refresh: Callable[[VisionTower, Tensor, Sequence[Any]], list[bool]]) -> "PreparedEncoder":
        """The same steps, with another rule for when a frame is computed whole."""
        twin = copy.copy(self)
        twin._must_refresh = must_refresh
        return twin

    @torch.no_grad()
    def encode(self, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """See `contracts.Prepared`."""
        mine: list[Any] = list(states)  # of the method's own kind; a method that remembers nothing has no fields
        tower, remembers = self._tower, bool(self._packed.plan.count)
        flags = self._must_refresh(tower, hidden, mine)
        whole = [b for b, flag in enumerate(flags) if flag]
        partly = [b for b, flag in enumerate(flags) if not flag]
        new = [self._new_references(hidden) for _ in whole] if remembers else []
        old = [[kept_tensor(getattr(mine[b], kind)) for kind in KINDS] for b in partly]
        run = self._run_plainly if self._buckets is None else self._run_captured
        outputs, times, room = run(hidden, whole, partly, [*new, *old])
        row_of = dict(zip([*whole, *partly], [*range(len(whole)), *range(room, room + len(partly))], strict=True))
        result, *others = (torch.stack([output[row_of[b]] for b in range(len(mine))]) for output in outputs)
        taps = dict(zip(self._packed.taps, others, strict=True))
        if not remembers:
            return Encoded(result, taps, refreshed=tuple(flags))
        for b, tensors in zip(whole, new, strict=True):
            state = mine[b]
            state.gate, state.values, state.trail = tensors
            state.age, state.grid = 1, tower.grid
        for b in partly:
            mine[b].age += 1
        share, everywhere = times / len(tower.layers), times.new_ones(tower.num_tokens)
        shares = [everywhere if flag else share[row_of[b] - room] for b, flag in enumerate(flags)]
        return Encoded(result, taps, torch.stack(shares), tuple(flags))

    def _new_references(self, hidden: Tensor) -> list[Tensor]:
        # Fresh memory at every refresh: a fork of the stream may still use the old reference.
        return [hidden.new_empty(count, *hidden.shape[1:]) for count in self._packed.kept]

    def _run_plainly(
        self, hidden: Tensor, whole: list[int], partly: list[int], stored: list[list[Tensor]]
    ) -> tuple[Iterable[Tensor], Tensor, int]:
        rows = torch.stack([hidden[b] for b in (*whole, *partly)])
        stacks = [torch.stack(tensors) for tensors in zip(*stored, strict=True)]
        references = References(*map(Stored, stacks)) if stacks else None
        output, times, taps = self._packed.run(rows, self._packed.chosen(rows, len(whole)), references)
        for place, tensors in enumerate(stored[: len(whole)]):
            for own, stack in zip(tensors, stacks, strict=True):
                own.copy_(stack[place])
        return (output, *taps), times, len(whole)

    def _run_captured(
        self, hidden: Tensor, whole: list[int], partly: list[int], stored: list[list[Tensor]]
    ) -> tuple[Iterable[Tensor], Tensor, int]:
        assert self._buckets is not None
        room, most = self._buckets.find(len(whole), len(partly))
        table = torch.zeros(len(KINDS), room + most, dtype=torch.int64)
        for members, first, tensors in ((whole, 0, stored[: len(whole)]), (partly, room, stored[len(whole) :])):
            if members:
                own = self._buckets.hidden[first : first + len(members)]
                torch.stack([hidden[b] for b in members], out=own)
            for row, kinds in enumerate(tensors, first):
                table[:, row] = torch.tensor([tensor.data_ptr() for tensor in kinds])
        self._buckets.addresses[:, : room + most].copy_(table, non_blocking=True)
        return *self._buckets.steps[room, most].replay(), room  # pyright: ignore[reportReturnType] - two outputs
