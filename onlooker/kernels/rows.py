"""Rows of many streams in one list: gather, residual with norm, and reading and writing each stream's reference.

A packed vision step computes `[rows, dim]`: all tokens of the streams that refresh, then the chosen tokens of the
others. `flat` says of each row which token of `[streams * tokens, dim]` it is, `place` of each token which row it is
(-1: none, it is stale). Every function has a plain form (`kernels=None`) that defines it and runs anywhere, and a
Triton kernel that does the same in one pass over memory; sums are rounded where the plain form stores them.

Use the kernels on a CUDA device: without them a layer spends as long on copies and norms as on its selected products.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

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


def gather_rows(tokens: Tensor, flat: Tensor, kernels: Kernels) -> Tensor:
    """Rows `flat` of `[tokens, dim]`, `[rows, dim]`."""
    if kernels is None:
        return tokens.index_select(0, flat)
    dim = tokens.shape[1]
    rows = tokens.new_empty(len(flat), dim)
    kernels.gather[(len(flat),)](tokens, flat, rows, dim, BLOCK=power_of_two(dim), num_warps=WARPS)
    return rows


def residual_norm(
    tokens: Tensor, flat: Tensor | None, branch: Tensor, norm: torch.nn.LayerNorm, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """`tokens[flat] + branch` and its norm, `[rows, dim]` each; `flat` None means all tokens, in order."""
    if kernels is None:
        total = (tokens if flat is None else tokens.index_select(0, flat)) + branch
        return total, norm(total)
    rows, dim = branch.shape
    total, normed = torch.empty_like(branch), torch.empty_like(branch)
    kernels.residual_norm[(rows,)](
        tokens,
        branch if flat is None else flat,
        branch,
        norm.weight,
        norm.bias,
        total,
        normed,
        dim,
        norm.eps,
        ALL=flat is None,
        BLOCK=power_of_two(dim),
        num_warps=WARPS,
    )
    return total, normed


def advance(
    tokens: Tensor,
    place: Tensor,
    middle: Tensor,
    mlp: Tensor,
    sums: Stored,
    layer: int,
    norm: torch.nn.LayerNorm | None,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:
    """A layer's output for all tokens and its norm, `[tokens, dim]` each.

    A token with a row becomes `middle + mlp`, a stale one itself plus both branches of its reference. `sums` belongs to
    the streams of `tokens`, of equal length. Without `norm` the second result is the first.
    """
    total, dim = tokens.shape
    if kernels is None:
        stale = tokens + sums.layer(layer).flatten(0, 1)
        output = torch.where(place[:, None] >= 0, (middle + mlp)[place.clamp_min(0)], stale)
        return output, output if norm is None else norm(output)
    assert sums.addresses is not None
    output = torch.empty_like(tokens)
    normed = output if norm is None else torch.empty_like(tokens)
    kernels.advance[(total,)](
        tokens,
        place,
        middle,
        mlp,
        sums.addresses,
        output if norm is None else norm.weight,
        output if norm is None else norm.bias,
        output,
        normed,
        total // len(sums.addresses),
        layer,
        dim,
        0.0 if norm is None else norm.eps,
        NORM=norm is not None,
        BLOCK=power_of_two(dim),
        num_warps=WARPS,
    )
    return output, normed


def fill_values(fresh: Tensor, place: Tensor, values: Stored, layer: int, kernels: Kernels) -> Tensor:
    """Values of all tokens, `[streams, tokens, dim]`: fresh ones of tokens with a row, the reference's of the others.

    `fresh` is `[rows, dim]` (its rows may lie apart), `place` `[streams * tokens]`.
    """
    if kernels is None:
        old = values.layer(layer)
        return torch.where(place[:, None] >= 0, fresh[place.clamp_min(0)], old.flatten(0, 1)).view_as(old)
    assert values.addresses is not None
    streams, dim = len(values.addresses), fresh.shape[1]
    filled = fresh.new_empty(streams, len(place) // streams, dim)
    kernels.fill[(len(place),)](
        fresh,
        fresh.stride(0),
        place,
        values.addresses,
        filled,
        filled.shape[1],
        layer,
        dim,
        BLOCK=power_of_two(dim),
        num_warps=WARPS,
    )
    return filled


def keep_rows(rows: Tensor, more: Tensor | None, stored: Stored, layer: int, kernels: Kernels) -> None:
    """Write `rows` (plus `more`) of whole streams, `[streams * tokens, dim]`, into one layer of what is stored."""
    if kernels is None:
        assert stored.stack is not None
        written = rows if more is None else rows + more
        stored.stack[:, layer] = written.view(len(stored.stack), -1, rows.shape[1])
        return
    assert stored.addresses is not None
    total, dim = rows.shape
    kernels.keep[(total,)](
        rows,
        rows.stride(0),
        rows if more is None else more,
        stored.addresses,
        total // len(stored.addresses),
        layer,
        dim,
        SUM=more is not None,
        BLOCK=power_of_two(dim),
        num_warps=WARPS,
    )
