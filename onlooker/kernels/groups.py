"""Rows that take over the mean of others: one pass over the rows in their own format, no copies of them in float32.

Merging methods make a token the mean of those that joined it. Written out, that is a sort, a gather, a product, a sum
and a quotient over copies of all tokens in float32, for every array of theirs. Here the members are put in order once,
and each array takes one kernel.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import power_of_two

MOST_WIDE = 16384
"""Values of a row that one program holds in registers."""


def group_kernels() -> ModuleType:
    """The kernel. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _groups_triton
    except ImportError as error:
        raise ModelError("the kernel of groups needs Triton", given=str(error), do="install triton") from error
    return _groups_triton


@cache
def kernels_on(device_type: str) -> ModuleType | None:
    """The kernel where it can run; None: the plain form (no GPU, or CUDA without Triton)."""
    try:
        return group_kernels() if device_type == "cuda" else None
    except ModelError:
        return None


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


def blended_rows(
    values: Tensor,
    groups: Groups,
    own: Tensor,
    takes: Tensor,
    weight: Tensor | None = None,
    kernels: ModuleType | None = None,
) -> Tensor:
    """Rows (`[rows, ...]`, floating point) of which those that take (bool `[rows]`) become `own` (float32 `[rows]`) of
    themselves and the rest the mean of their members, by `weight` (float32 `[rows]`); the others stay to the bit.

    Sums run over the members in order, in float32, and are rounded once, to the format of the rows.
    """
    divisor = groups.length.float() if weight is None else groups.sums(weight)
    rows, dim = len(values), values[0].numel() if len(values) else 0
    if kernels is None or dim > MOST_WIDE or not values.numel():
        each = (-1, *[1] * (values.ndim - 1))
        wide, share = values.float(), own.view(each)
        total = groups.sums(wide if weight is None else wide * weight.view(each))
        mixed = wide * share + total / divisor.view(each) * (1 - share)
        return torch.where(takes.view(each), mixed.to(values.dtype), values)
    flat = values.contiguous()
    out = torch.empty_like(flat)
    kernels.blend[(rows,)](
        flat, groups.order, groups.first, groups.length, own if weight is None else weight, divisor, own,
        takes, out, dim, WEIGHED=weight is not None, BLOCK=power_of_two(dim), num_warps=4,
    )  # fmt: skip
    return out
