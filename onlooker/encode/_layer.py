"""One whole vision layer, with the intermediate results a method may keep."""

from typing import NamedTuple

from torch import Tensor

from onlooker.core.contracts import VisionLayer


class Computed(NamedTuple):
    """What a layer computed, all `[streams, tokens, dim]`."""

    output: Tensor
    normed: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor
    """The attention branch after its output projection."""
    mlp: Tensor
    """The MLP branch."""


def run_layer(layer: VisionLayer, hidden: Tensor) -> Computed:
    """The layer on all tokens, in the order of operations of a plain pre-norm layer (so equal to it bit by bit)."""
    normed = layer.norm(hidden)
    keys, values = layer.keys(normed), layer.values(normed)
    attention = layer.out(layer.attend(layer.queries(normed), keys, values))
    middle = hidden + attention
    mlp = layer.mlp(middle)
    return Computed(middle + mlp, normed, keys, values, attention, mlp)
