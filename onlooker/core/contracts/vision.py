"""What a vision tower offers to encoders: its layers in pieces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from onlooker.core.contracts.packed import PackedLayer


class VisionLayer(Protocol):
    """One pre-norm transformer layer of a vision tower, in pieces, so that a method can run it on some tokens only.

    Every piece is row-wise except `attend`. A plain layer is
    `y = x + out(attend(q(h), k(h), v(h)))` with `h = norm(x)`, then `y + mlp(y)`.
    """

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm before attention, `[streams, tokens, dim]`."""
        ...

    def queries(self, normed: Tensor) -> Tensor:
        """Query projection, heads not split, `[streams, tokens, dim]`."""
        ...

    def keys(self, normed: Tensor) -> Tensor:
        """Key projection before any rotation, `[streams, tokens, dim]`."""
        ...

    def values(self, normed: Tensor) -> Tensor:
        """Value projection, `[streams, tokens, dim]`."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, index: Tensor | None = None) -> Tensor:
        """Attention output before the output projection, `[streams, queries, dim]`.

        `index` (int64 `[streams, queries]`) says which tokens the queries belong to; None means all, in order.
        Rotation, windows and heads are the layer's own business.
        """
        ...

    def scores(self, queries: Tensor, keys: Tensor, asking: Tensor | None, seen: Tensor | None) -> Tensor:
        """What `attend` takes the softmax of, `[streams, heads, queries, keys]`, float32 where the model computes in 16
        bits; -inf where a query does not see a key.

        `asking` and `seen` (int64 `[queries]`, `[keys]`) say which tokens queries and keys belong to, the same in each
        stream; None means all, in order. Heads are equal parts of the width, in order.
        """
        ...

    def out(self, attended: Tensor) -> Tensor:
        """Output projection of the attention branch (with layer scale, if the family has one)."""
        ...

    def mlp(self, hidden: Tensor) -> Tensor:
        """The MLP branch with its norm, without the residual."""
        ...


@dataclass(frozen=True)
class VisionTower:
    """The layers of a vision tower at one input geometry."""

    layers: Sequence[VisionLayer]
    num_tokens: int
    """Tokens of one frame inside the tower (CLS included)."""
    dim: int
    group: int = 1
    """Neighbouring tokens that are later merged into one and therefore must be chosen together."""
    pinned: int = 0
    """Leading tokens that describe the whole frame (CLS)."""
    tap_layers: frozenset[int] = frozenset()
    """Layers whose output the model also needs (DeepStack)."""
    mlp_dim: int | None = None
    """Width inside the MLP, for counting FLOP; None means four times `dim`. A gated MLP has three matrices instead of
    two, so it counts as one and a half times its width."""
    mean_attended: float | None = None
    """Keys a query attends to, mean over layers, for counting FLOP; None means all tokens (windows see fewer)."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of patches in the frame, for drawing."""
    raster: Tensor | None = None
    """Raster index of every token after the pinned ones, int64; None when they are in raster order already."""
    pack: Callable[[], Sequence[PackedLayer]] | None = None
    """Makes the layers' packed form, which copies some weights; None when the family has none yet."""


@dataclass(frozen=True)
class Encoded:
    """What came out of a vision tower for one frame of each stream."""

    hidden: Tensor
    """After the last layer, `[streams, tokens, dim]`."""
    taps: Mapping[int, Tensor] = field(default_factory=dict)
    """Output of every tapped layer, each `[streams, tokens, dim]`."""
    recomputed: Tensor | None = None
    """Share of each token's work in the layers that was done anew, float32 `[streams, tokens]`; None means all."""
    refreshed: tuple[bool, ...] = ()
    """Per stream: was the whole frame computed densely?"""
