"""Which tokens changed most, and how to read and write those rows."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Metric = Literal["cosine", "l1", "l2", "dot"]


def similarity(current: Tensor, reference: Tensor, metric: Metric) -> Tensor:
    """How alike each token is to its reference, float32 `[streams, tokens]`, larger is more alike.

    `current` and `reference` are `[streams, tokens, dim]`. Always in float32: half precision would tie many tokens.
    """
    current, reference = current.float(), reference.float()
    if metric in ("cosine", "dot"):
        product = torch.linalg.vecdot(current, reference)
        if metric == "dot":
            return product
        # The library's own cosine divides both tensors first: two more passes over them.
        return product / (current.norm(dim=-1) * reference.norm(dim=-1)).clamp_min(1e-12)
    return -torch.linalg.vector_norm(current - reference, ord=1 if metric == "l1" else 2, dim=-1)


def least_alike(alike: Tensor, count: int, group: int = 1, pinned: int = 0) -> Tensor:
    """Indices of the `count` least alike tokens, int64 `[streams, count]`, ascending.

    `alike` is `[streams, tokens]`. With `group` > 1, whole groups of neighbours are chosen by their mean, and the
    `pinned` leading tokens, which belong to no group, are always chosen; `count` must then be
    `pinned` plus a multiple of `group`.
    """
    if group == 1:
        return alike.topk(count, dim=1, largest=False, sorted=False).indices.sort(1).values
    per_group = alike[:, pinned:].unflatten(1, (-1, group)).mean(-1)
    chosen = per_group.topk((count - pinned) // group, dim=1, largest=False, sorted=False).indices.sort(1).values
    members = pinned + chosen[:, :, None] * group + torch.arange(group, device=alike.device)
    always = torch.arange(pinned, device=alike.device).expand(len(alike), -1)
    return torch.cat([always, members.flatten(1)], dim=1)


class Picked(NamedTuple):
    """The tokens to recompute."""

    index: Tensor
    """Their numbers in their frame, int64 `[streams, count]`, ascending."""
    flat: Tensor
    """Their row numbers in a flattened `[streams * tokens, dim]` tensor, int64 `[streams * count]`."""

    @classmethod
    def of(cls, index: Tensor, num_tokens: int) -> "Picked":
        if len(index) == 1:
            return cls(index, index[0])
        first = torch.arange(0, len(index) * num_tokens, num_tokens, device=index.device)
        return cls(index, (index + first[:, None]).flatten())


def take_rows(tokens: Tensor, flat: Tensor) -> Tensor:
    """Rows `flat` of `[streams, tokens, dim]`, as `[streams, count, dim]`.

    Copies whole rows: several times faster on a CPU than `gather` with an index expanded over `dim`.
    """
    return tokens.flatten(0, 1).index_select(0, flat).unflatten(0, (len(tokens), -1))


def put_rows(tokens: Tensor, flat: Tensor, rows: Tensor) -> Tensor:
    """A copy of `[streams, tokens, dim]` with `rows` (`[streams, count, dim]`) at rows `flat`."""
    return tokens.flatten(0, 1).index_copy(0, flat, rows.flatten(0, 1)).view_as(tokens)
