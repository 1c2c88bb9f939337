"""Layers of which only one branch is reused: the paper's ablation of what is worth keeping."""

from typing import Literal, NamedTuple

from torch import Tensor

from onlooker.core.contracts import VisionLayer
from onlooker.encode._selection import Picked, take_rows

Reused = Literal["both", "attention", "mlp"]


class OneBranch(NamedTuple):
    """A layer on a frame, all `[streams, tokens, dim]`."""

    output: Tensor
    values: Tensor
    kept: Tensor
    """The branch that is reused, fresh where it was computed."""


def reuse_attention(layer: VisionLayer, hidden: Tensor, keys: Tensor, old: OneBranch, picked: Picked) -> OneBranch:
    """Attention of the chosen tokens only, the others keep that of the reference; the MLP of all."""
    fresh = take_rows(layer.norm(hidden), picked.flat)
    values = picked.put(old.values, layer.values(fresh))
    attention = layer.out(layer.attend(layer.queries(fresh), keys, values, picked.index))
    kept = picked.put(old.kept, attention)
    middle = hidden + kept
    return OneBranch(middle + layer.mlp(middle), values, kept)


def reuse_mlp(layer: VisionLayer, hidden: Tensor, keys: Tensor, old: OneBranch, picked: Picked) -> OneBranch:
    """Attention of all tokens; the MLP of the chosen ones only, the others keep that of the reference."""
    normed = layer.norm(hidden)
    values = layer.values(normed)
    middle = hidden + layer.out(layer.attend(layer.queries(normed), keys, values))
    kept = picked.put(old.kept, layer.mlp(take_rows(middle, picked.flat)))
    return OneBranch(middle + kept, values, kept)
