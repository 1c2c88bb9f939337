"""Rows that take over the mean of others: one pass over the rows in their own format, no copies of them in float32.

Merging methods make a token the mean of those that joined it. Written out, that is a sort, a gather, a product, a sum
and a quotient over copies of all tokens in float32, for every array of theirs: ten passes of twice the bytes. Here the
members are put in order once, by counting, and each array takes one kernel.
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
MOST_ROWS = 1 << 15
"""Rows that are put in order by counting: every one is compared with every other."""


def group_kernels() -> ModuleType:
    """The kernels. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _groups_triton
    except ImportError as error:
        raise ModelError("the kernels of groups need Triton", given=str(error), do="install triton") from error
    return _groups_triton


@cache
def kernels_on(device_type: str) -> ModuleType | None:
    """The kernels where they can run; None: the plain form (no GPU, or CUDA without Triton)."""
    try:
        return group_kernels() if device_type == "cuda" else None
    except ModelError:
        return None


@dataclass(frozen=True)
class Groups:
    """Which rows belong to which: the members of row r are `order[first[r] : first[r] + length[r]]`, ascending; int64.
    Rows in no group are the last of the order. Nothing waits for the device."""

    order: Tensor
    first: Tensor
    length: Tensor
    """How many members each row has."""
    kernels: ModuleType | None = None
    """What made it, and adds up by it; None: the plain form."""

    @classmethod
    def of(cls, owner: Tensor, member: Tensor | None = None) -> "Groups":
        """By the owner of each row (int64 `[rows]`, any shape, counted over all); those where `member` (bool) is false
        are in no group."""
        return cls.found(owner, member, kernels_on(owner.device.type))

    @classmethod
    def found(cls, owner: Tensor, member: Tensor | None, kernels: ModuleType | None) -> "Groups":
        """The same by these kernels, or in the plain form."""
        flat, rows = owner.flatten(), owner.numel()
        into = flat if member is None else torch.where(member.flatten(), flat, rows)
        if kernels is not None and 0 < rows <= MOST_ROWS:
            order, first, length = (torch.empty_like(into) for _ in range(3))
            block = min(256, power_of_two(rows))
            kernels.members[(-(-rows // 32),)](into, order, first, length, rows, ROWS=32, BLOCK=block, num_warps=4)
            return cls(order, first, length, kernels)
        ones = torch.ones_like(into)
        length = torch.zeros(rows + 1, dtype=torch.int64, device=flat.device).index_add_(0, into, ones)[:-1]
        return cls(into.argsort(stable=True), length.cumsum(0) - length, length, kernels)

    def sums(self, values: Tensor) -> Tensor:
        """The sum over the members of each row, float32 `[rows, ...]`, 0 where there are none."""
        if self.kernels is not None and values.ndim == 1 and len(values):
            out = torch.empty(len(values), dtype=torch.float32, device=values.device)
            self.kernels.totals[(len(values),)](
                values.contiguous(), self.order, self.first, self.length, out, num_warps=1
            )
            return out
        # Sorted segments and not a product of matrices, whose sums round differently from one batch size to the next.
        # Rows in no group lie behind the segments: as one of their own they were a sum of thousands, one by one.
        return torch.segment_reduce(values.float()[self.order], "sum", lengths=self.length, unsafe=True)


def blended_rows(values: Tensor, groups: Groups, own: Tensor, takes: Tensor, weight: Tensor | None = None) -> Tensor:
    """Rows (`[rows, ...]`, floating point) of which those that take (bool `[rows]`) become `own` (float32 `[rows]`) of
    themselves and the rest the mean of their members, by `weight` (float32 `[rows]`); the others stay to the bit.

    Sums run over the members in order, in float32, and are rounded once, to the format of the rows.
    """
    rows, dim = len(values), values[0].numel() if len(values) else 0
    if groups.kernels is None or dim > MOST_WIDE or not values.numel():
        each = (-1, *[1] * (values.ndim - 1))
        wide, share = values.float(), own.view(each)
        total = groups.sums(wide if weight is None else wide * weight.view(each))
        divisor = groups.length.float() if weight is None else groups.sums(weight)
        mixed = wide * share + total / divisor.view(each) * (1 - share)
        return torch.where(takes.view(each), mixed.to(values.dtype), values)
    flat = values.contiguous()
    out = torch.empty_like(flat)
    groups.kernels.blend[(rows,)](
        flat, groups.order, groups.first, groups.length, own if weight is None else weight, own,
        takes, out, dim, WEIGHED=weight is not None, BLOCK=power_of_two(dim), num_warps=4,
    )  # fmt: skip
    return out
