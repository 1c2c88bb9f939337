"""Rows that take over the mean of others.

Merging methods make a token the mean of those that joined it. The members are put in order once, for all arrays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Which rows belong to which: the members of row r are `order[first[r] : first[r] + lengths[r]]`, ascending; int64.
    Nothing waits for the device."""

    order: Tensor
    first: Tensor
    lengths: Tensor
    """One more: that of the rows in no group."""

    @property
    def length(self) -> Tensor:
        """How many members each row has."""
        return self.lengths[:-1]

    @classmethod
    def of(cls, owner: Tensor, member: Tensor | None = None) -> "Groups":
        """By the owner of each row (int64 `[rows]`, any shape, counted over all); those where `member` (bool) is false
        are in no group."""
        flat, rows = owner.flatten(), owner.numel()
        into = flat if member is None else torch.where(member.flatten(), flat, rows)
        ones = torch.ones_like(into)
        lengths = torch.zeros(rows + 1, dtype=torch.int64, device=flat.device).index_add_(0, into, ones)
        return cls(into.argsort(stable=True), (lengths.cumsum(0) - lengths)[:-1], lengths)

    def sums(self, values: Tensor) -> Tensor:
        """The sum over the members of each row, float32 `[rows, ...]`, 0 where there are none."""
        # Sorted segments and not a product of matrices, whose sums round differently from one batch size to the next.
        return torch.segment_reduce(values.float()[self.order], "sum", lengths=self.lengths, unsafe=True)[:-1]


def blended_rows(values: Tensor, groups: Groups, own: Tensor, takes: Tensor, weight: Tensor | None = None) -> Tensor:
    """Rows (`[rows, ...]`, floating point) of which those that take (bool `[rows]`) become `own` (float32 `[rows]`) of
    themselves and the rest the mean of their members, by `weight` (float32 `[rows]`); the others stay to the bit.

    Sums run over the members in order, in float32, and are rounded once, to the format of the rows.
    """
    each, wide = (-1, *[1] * (values.ndim - 1)), values.float()
    share, weighed = own.view(each), wide if weight is None else wide * weight.view(each)
    divisor = groups.length.float() if weight is None else groups.sums(weight)
    mixed = wide * share + groups.sums(weighed) / divisor.view(each) * (1 - share)
    return torch.where(takes.view(each), mixed.to(values.dtype), values)
