"""What STC-Cacher remembers of each stream, and how the memories of several streams become one batch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from onlooker.core.state import StreamState


@dataclass
class CacherState(StreamState):
    """What one stream's reference left behind. Tensors are replaced, never written to, so forks share them."""

    age: int = 0
    """Frames since the last refresh, that one included."""
    gate: Tensor | None = None
    """What change is measured against, `[gates, tokens, dim]`: one per selective layer, or one for all."""
    values: Tensor | None = None
    """Attention values, `[selective layers, tokens, dim]`."""
    trail: Tensor | None = None
    """Hidden states before every layer from the first selective one on, and behind the last of them, `[layers + 1,
    tokens, dim]`: from one to the next a stale token moves as its reference did. Only of a fixed reference."""
    sums: Tensor | None = None
    """The same of a rolling reference, whose tokens date from different frames: attention branch plus MLP branch,
    `[selective layers, tokens, dim]`."""
    waits: Tensor | None = None
    """Frames since each token was computed, float32 `[gates, tokens]`; only with `age_weight`."""
    patches: Tensor | None = None
    """Patch embeddings of the last refresh, `[tokens, dim]`; only with `refresh_on_cut`."""
    grid: tuple[int, ...] = ()
    """Rows and columns of the reference's patches."""

    def fork(self) -> Self:
        return copy.copy(self)


@dataclass
class Reference:
    """The references of several streams side by side, each field a list over layers of `[streams, tokens, dim]`."""

    gate: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    trail: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    """What each selective layer adds to a stale token."""
    waits: list[Tensor] = field(default_factory=list)


def kept_tensor(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a state was used before its first refresh"
    return tensor


def side_by_side(states: list[CacherState], layers: Sequence[int]) -> Reference:
    """The references of `states`, in which `layers` are the selective layers, ascending."""

    def of(tensors: list[Tensor | None]) -> list[Tensor]:
        if tensors[0] is None:
            return []
        if len(tensors) == 1:
            return list(tensors[0].unsqueeze(1).unbind(0))
        return list(torch.stack([kept_tensor(tensor) for tensor in tensors], dim=1).unbind(0))

    trail, sums = of([s.trail for s in states]), of([s.sums for s in states])
    if trail:
        sums = [trail[n + 1 - layers[0]] - trail[n - layers[0]] for n in layers]
    return Reference(
        of([s.gate for s in states]), of([s.values for s in states]), trail, sums, of([s.waits for s in states])
    )


def remember(new: Reference, states: list[CacherState]) -> None:
    """Give every stream its part of `new`; what `new` has nothing of stays as it is."""
    for name in ("gate", "values", "trail", "sums", "waits"):
        if layers := getattr(new, name):
            # A gate only steers the choice, which has no gradient; keeping its graph would hold memory for nothing.
            layers = [layer.detach() for layer in layers] if name == "gate" else layers
            streams = torch.stack(layers, dim=1).unbind(0)
            for state, kept in zip(states, streams, strict=True):
                # A view would keep the references of the whole batch alive as long as one of its streams lives.
                shared = len(states) > 1 and not kept.requires_grad
                setattr(state, name, kept.clone() if shared else kept)
