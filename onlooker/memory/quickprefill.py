"""Of every group of frames keep the rows with the smallest keys, for good (QuickPrefill).

"QuickVideo: Real-Time Long Video Understanding with System Algorithm Co-Design" (arXiv 2505.16175): after a group of
frames has been read, in each layer the tokens with the smallest norm of the keys of all heads together stay, a share of
the group; what comes later sees these only, at the positions that they had. Changed: a group is thinned when its last
frame has been read, all layers together, and not layer by layer; notes are never thinned and end a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState


@dataclass
class GroupState(StreamState):
    """The group that is not complete yet."""

    next_id: int = 0
    """Blocks with this number or a higher one are new."""
    waiting: list[int] = field(default_factory=list)
    """Blocks of the group so far."""


@dataclass(frozen=True)
class QuickPrefill(MemoryPolicy):
    """Memory grows with the stream, by a share of what it would without."""

    realises: ClassVar[tuple[str, ...]] = ("quickvideo",)
    contract_exceptions: ClassVar[dict[str, str]] = {"bounded_memory": "it keeps a share of everything, as published"}

    keep_ratio: float = 0.5
    """Share of a group's rows that stays; 1 keeps everything."""
    group: int = 16
    """Frames of a group."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise InputError("keep_ratio is a share", given=str(self.keep_ratio), do="use more than 0, at most 1")
        if self.group < 1:
            raise InputError("a group has frames", given=f"group={self.group}", do="use 1 or more")

    def new_state(self) -> GroupState:
        """No group yet."""
        return GroupState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Melt the group that has become complete."""
        assert isinstance(state, GroupState)
        new, place = [], len(spans)
        while place and spans[place - 1].id >= state.next_id:  # only the newest are new
            place -= 1
            new.append(spans[place])
        complete: tuple[int, ...] = ()
        for span in reversed(new):
            if span.kind == "vision":
                state.waiting = [*state.waiting, span.id]
            if len(state.waiting) >= self.group or (span.kind != "vision" and state.waiting):
                complete, state.waiting = (*complete, *state.waiting), []
        state.next_id = spans[-1].id + 1
        return Plan(melt=complete) if complete and self.keep_ratio < 1 else Plan()

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """The rows with the smallest keys, the same in all heads of a layer."""
        layers, heads, rows, _ = keys.shape
        count = max(1, round(rows * self.keep_ratio))
        index = keys.new_empty(layers, 1, count, dtype=torch.int64)
        for layer in range(layers):  # one after the other: it takes a copy in float32
            norms = keys[layer].float().square().sum(dim=(0, 2))
            index[layer, 0] = norms.topk(count, largest=False).indices.sort().values
        return index.expand(layers, heads, count).contiguous()
