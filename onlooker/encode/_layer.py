"""One whole vision layer, with the intermediate results a method may keep; streams apart, and together again."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionLayer


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


def row_of(encoded: Encoded, row: int) -> Encoded:
    """One stream of several, without the axis of streams."""
    assert encoded.recomputed is not None
    taps = {number: tap[row] for number, tap in encoded.taps.items()}
    return Encoded(encoded.hidden[row], taps, encoded.recomputed[row], encoded.refreshed[row : row + 1])


def joined(rows: Sequence[Encoded]) -> Encoded:
    """Several streams, each as `row_of` gave it."""
    recomputed = [row.recomputed for row in rows if row.recomputed is not None]
    return Encoded(
        torch.stack([row.hidden for row in rows]),
        {number: torch.stack([row.taps[number] for row in rows]) for number in rows[0].taps},
        torch.stack(recomputed),
        tuple(flag for row in rows for flag in row.refreshed),
    )
