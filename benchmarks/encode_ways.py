"""The ways in which one frame of each of many streams is encoded, ready to be timed: op by op, as a graph, packed."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.encode_tower import MOMENTS
from onlooker.cli.timing import Action
from onlooker.core.contracts import VisionTower
from onlooker.encode._packed import PackedTower, References, StepPlan, Ways
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.rows import Stored


@dataclass(frozen=True, eq=False)
class EncodeWays:
    """Of one vision tower. `frames` are moments of all streams, the first of which is the reference."""

    module: Any
    """The stock Transformers module."""
    tower: VisionTower
    layers: Sequence[Any]
    """Its layers in packed form."""
    device: torch.device

    def stock(self, hidden: Tensor) -> Tensor:
        """The library's own module."""
        return self.module.encoder(inputs_embeds=hidden).last_hidden_state

    def dense(self, hidden: Tensor) -> Tensor:
        """Our layers, op by op."""
        return Full().encode(self.tower, hidden, [Full().new_state()] * len(hidden)).hidden

    def moving(
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

    def selective(self, frames: list[Tensor], method: STCPublished, graph: bool = False) -> Action:
        """A frame of which only some tokens are computed, op by op."""
        endless = dataclasses.replace(method, interval=None)
        states = [endless.new_state() for _ in range(len(frames[0]))]
        endless.encode(self.tower, frames[0], states)

        def run(hidden: Tensor) -> Tensor:
            return endless.encode(self.tower, hidden, [state.fork() for state in states]).hidden

        return self.moving(frames, run, graph=graph)

    def packed(self, frames: list[Tensor], method: Full | STCPublished, ways: Ways, whole: int = 0) -> Action:
        """A packed step, captured where it can be, with streams whose reference is the first moment."""
        if isinstance(method, Full):
            packed = PackedTower(self.layers, StepPlan(), ways)
            every = packed.chosen(frames[0], len(frames[0]))
            return self.moving(frames, lambda hidden: packed.run(hidden, every, None)[0], graph=True)
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

        return self.moving(frames, run, graph=True)
