"""Queries and keys whose channels are of one size, which is what 4 bits with a scale a row can hold.

A score is a sum over channels of query times key: a channel of all keys may be made smaller when that of all queries is
made larger. Factors are powers of two, so that nothing is rounded, and come from the weights alone: nothing has to be
seen first. Where queries and keys are turned by place this is not the same function, and they stay as they are.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from onlooker.core.contracts import VisionLayer, VisionTower
from onlooker.core.contracts.packed import PackedLayer
from onlooker.encode._packed import packed_layers

ROWS = 512
"""Random tokens by which channels are measured."""

_factors: dict[int, tuple[ref[Any], Tensor | None]] = {}
"""Of layers that were measured, by identity (a layer need not be hashable); they go when their layer goes.
Whatever a layer's weights become, its factors leave its function as it is."""


class EvenLayer:
    """A vision layer whose queries are multiplied with `factor` (`[dim]`) and whose keys are divided by it."""

    def __init__(self, layer: VisionLayer, factor: Tensor) -> None:
        self._layer, self._factor = layer, factor

    def queries(self, normed: Tensor) -> Tensor:
        """Query projection, heads not split, `[streams, tokens, dim]`."""
        return self._layer.queries(normed) * self._factor

    def keys(self, normed: Tensor) -> Tensor:
        """Key projection, `[streams, tokens, dim]`."""
        return self._layer.keys(normed) / self._factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


@torch.no_grad()
def evened(tower: VisionTower, like: Tensor) -> VisionTower:
    """The same tower with channels of queries and keys of one size, for tokens like these (`[..., dim]`)."""
    factors = [_factor(layer, like) for layer in tower.layers]
    if all(factor is None for factor in factors):
        return tower
    layers = [
        layer if factor is None else EvenLayer(layer, factor)
        for layer, factor in zip(tower.layers, factors, strict=True)
    ]

    def pack() -> Sequence[PackedLayer]:
        return [_packed(layer, factor) for layer, factor in zip(packed_layers(tower), factors, strict=True)]

    return dataclasses.replace(tower, layers=layers, pack=None if tower.pack is None else pack)


def _factor(layer: VisionLayer, like: Tensor) -> Tensor | None:
    """What queries of a layer are to be multiplied with, `[dim]`; None: nothing."""
    known = _factors.get(id(layer))
    if known is not None and known[0]() is layer:
        return known[1]
    random = torch.Generator().manual_seed(11)
    tokens = torch.randn(1, ROWS, like.shape[-1], generator=random).to(like)
    normed = layer.norm(tokens)
    queries, keys = layer.queries(normed), layer.keys(normed)
    asked, given = (rows[0].float().std(0).clamp_min(1e-12) for rows in (queries, keys))
    factor = torch.exp2((given / asked).log2().div_(2).round_()).to(like.dtype)
    some = torch.arange(min(ROWS, 2), device=like.device)
    pair = [rows[:, : len(some)] for rows in (queries, keys)]
    same = torch.allclose(
        layer.scores(pair[0] * factor, pair[1] / factor, some, some),
        layer.scores(pair[0], pair[1], some, some),
        rtol=1e-2,
    )
    kept = factor if same and bool((factor != 1).any()) else None
    number = id(layer)
    _factors[number] = ref(layer, lambda gone: _factors.pop(number, None)), kept
    return kept


def _packed(layer: PackedLayer, factor: Tensor | None) -> PackedLayer:
    """A packed layer with the factor in its weights: those of queries lie first, those of keys last."""
    if factor is None:
        return layer
    rows = torch.cat([factor, torch.ones_like(factor), 1 / factor])
    weight, bias = layer.query_value_key
    even = copy.copy(layer)
    even.query_value_key = (weight * rows[:, None], bias * rows)
    return even
