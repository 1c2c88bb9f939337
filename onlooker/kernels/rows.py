"""Rows of many streams in one list: gather, residual with norm, and reading and writing each stream's reference.

A packed vision step computes `[rows, dim]`: all tokens of the streams that refresh, then the chosen tokens of the
others. `flat` says of each row which token of `[streams * tokens, dim]` it is, `place` of each token which row it is
(-1: none, it is stale). Every function has a plain form (`kernels=None`) that defines it and runs anywhere, and a
Triton kernel that does the same in one pass over memory; sums are rounded where the plain form stores them.

Use the kernels on a CUDA device: without them a layer spends as long on copies and norms as on its selected products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from onlooker.core.contracts.packed import Norm
from onlooker.core.errors import ModelError

Kernels = ModuleType | None
"""The Triton kernels (`vision_kernels()`), or None for plain PyTorch."""
WARPS = 4


def vision_kernels() -> ModuleType:
    """The kernels compiled for the device. Raises `ModelError` where Triton is not installed."""
    try:
        from onlooker.kernels import _vision_triton
    except ImportError as error:
        raise ModelError("the vision kernels need Triton", given=str(error), do="install triton") from error
    return _vision_triton


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`, at least 16."""
    return max(16, 1 << (number - 1).bit_length())


def two_parts(dim: int) -> dict[str, Any]:
    """How rows of so many columns are worked on: see `_parts_triton`."""
    main = 1 << (dim.bit_length() - 1)
    return {"MAIN": main, "REST": power_of_two(dim - main)}


def launched(on: torch.device, warps: int = WARPS) -> dict[str, Any]:
    """How to launch a kernel that begins with `behind`: where the device can, each one is set up while the kernel in
    front of it still runs (programmatic dependent launch). A layer has a dozen kernels of a few microseconds."""
    early = _starts_early(on)
    return {"num_warps": warps, "EARLY": early, "launch_pdl": early}


@cache
def _starts_early(on: torch.device) -> bool:
    return on.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(on) >= (9, 0)


@dataclass(frozen=True, eq=False)
class RootMeanSquare:
    """A norm without mean and bias: rows are divided by their root mean square."""

    weight: Tensor
    eps: float
    bias: None = None

    def __call__(self, rows: Tensor) -> Tensor:
        wide = rows.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(rows.dtype)


@dataclass(frozen=True)
class Stored:
    """One `[layers, tokens, dim]` tensor of each of several streams.

    The plain forms read `stack`. The kernels read and write the tensors where they are, through their addresses, so
    that nothing is copied into a batch and a captured graph serves any streams; address 0 stands for no stream, whose
    rows read as zeros and are never written.
    """

    stack: Tensor | None = None
    """`[streams, layers, tokens, dim]`."""
    addresses: Tensor | None = None
    """int64 `[streams]`, of contiguous tensors."""

    def layer(self, number: int) -> Tensor:
        """`[streams, tokens, dim]` of one layer, for the plain forms."""
        assert self.stack is not None, "plain forms need the stack"
        return self.stack[:, number]

    def part(self, first: int, last: int) -> "Stored":
        """Streams `first` to `last`."""
        cut = slice(first, last)
        return Stored(
            None if self.stack is None else self.stack[cut], None if self.addresses is None else self.addresses[cut]
        )


def norm_weights(norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight and bias as the kernels take them: one without a bias is given the weight again, and does not read it."""
    return norm.weight, norm.weight if norm.bias is None else norm.bias


def gather_rows(tokens: Tensor, flat: Tensor, kernels: Kernels) -> Tensor:
    """Rows `flat` of `[tokens, dim]`, `[rows, dim]`."""
    if kernels is None:
        return tokens.index_select(0, flat)
    dim = tokens.shape[1]
    rows = tokens.new_empty(len(flat), dim)
    kernels.gather[(len(flat),)](tokens, flat, rows, dim, BLOCK=power_of_two(dim), **launched(rows.device))
    return rows


def residual_norm(tokens: Tensor, branch: Tensor, norm: Norm, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """`tokens + branch` and its norm, `[rows, dim]` each."""
    if kernels is None:
        total = tokens + branch
        return total, norm(total)
    rows, dim = branch.shape
    total, normed = torch.empty_like(branch), torch.empty_like(branch)
    kernels.residual_norm[(rows,)](
        tokens,
        branch,
        *norm_weights(norm),
        total,
        normed,
        dim,
        norm.eps,
        RMS=norm.bias is None,
        BLOCK=power_of_two(dim),
        **launched(branch.device),
    )
    return total, normed


@dataclass(frozen=True)
class ValueRows:
    """Attention values of all tokens of some streams, where they are: of tokens with a row among the fresh ones, of the
    others in their stream's reference."""

    fresh: Tensor
    """`[rows, dim]`; rows may lie apart."""
    place: Tensor
    """Row of every token, int32 `[streams * tokens]`; below 0: none."""
    stored: Stored
    layer: int

    def fill(self, kernels: Kernels) -> Tensor:
        """One beside the other, `[streams, tokens, dim]`."""
        fresh, place = self.fresh, self.place
        if kernels is None:
            old = self.stored.layer(self.layer)
            return torch.where(place[:, None] >= 0, fresh[place.clamp_min(0)], old.flatten(0, 1)).view_as(old)
        assert self.stored.addresses is not None
        streams, dim = len(self.stored.addresses), fresh.shape[1]
        filled = fresh.new_empty(streams, len(place) // streams, dim)
        kernels.fill[(filled.shape[1], streams)](
            fresh,
            fresh.stride(0),
            place,
            self.stored.addresses,
            filled,
            filled.shape[1],
            self.layer,
            dim,
            BLOCK=power_of_two(dim),
            **launched(fresh.device),
        )
        return filled


def keep_rows(rows: Sequence[Tensor], stored: Sequence[Stored], layer: int, kernels: Kernels) -> None:
    """Write one or two lists of rows of whole streams, `[streams * tokens, dim]`, into one layer of what is stored."""
    if kernels is None:
        for each, into in zip(rows, stored, strict=True):
            assert into.stack is not None
            into.stack[:, layer] = each.view(len(into.stack), -1, each.shape[1])
        return
    dim, addresses = rows[0].shape[1], [into.addresses for into in stored]
    assert addresses[0] is not None and len(rows) == len(stored) <= 2
    tokens = len(rows[0]) // len(addresses[0])
    kernels.keep[(tokens, len(addresses[0]))](
        rows[0],
        rows[0].stride(0),
        addresses[0],
        rows[-1],
        rows[-1].stride(0),
        addresses[-1],
        tokens,
        layer,
        dim,
        BOTH=len(rows) == 2,
        BLOCK=power_of_two(dim),
        **launched(rows[0].device),
    )
