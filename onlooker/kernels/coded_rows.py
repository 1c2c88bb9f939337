"""Keys and values that lie in codes: how a segment tells attention kernels of them, and the kernel that encodes them.

A codec says in plain PyTorch what codes mean (`core.contracts.Codec`); what is here equals it to rounding. The kernels
know three forms (`Codec.form`): whole numbers of 8 or 4 bits, keys by channel in groups of tokens and values by token,
and 8-bit floating point numbers with a scale a row.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.errors import ModelError
from onlooker.kernels.tiles import Tiles

COLUMNS = 6
"""Numbers of a tile: address of its block, the block's tokens, first token, tokens, group, and rows that come before
it among all that the stream has had in codes."""
KINDS = ("int8", "int4", "fp8")


@dataclass(frozen=True)
class Form:
    """What kernels are compiled for."""

    kind: str
    group: int
    """Tokens of a tile at most: those that share a channel's range."""

    @classmethod
    def of(cls, text: str) -> "Form | None":
        """From `Codec.form`; None where there is none. Raises `ModelError` for a form that no kernel knows."""
        if not text:
            return None
        kind, _, group = text.partition(":")
        if kind not in KINDS or not group.isdigit() or not 1 <= int(group) <= 64:
            do = f"a form of: {', '.join(KINDS)}, in groups of up to 64 tokens"
            raise ModelError("no attention kernel knows this form of keys and values", given=text, do=do)
        return cls(kind, int(group))

    def tiles(self, address: int, num_tokens: int, before: int) -> list[list[int]]:
        """The tiles of a block at an address, behind so many rows."""
        groups = -(-num_tokens // self.group)
        size = -(-num_tokens // groups)
        firsts = range(0, num_tokens, size)
        return [
            [address, num_tokens, first, min(size, num_tokens - first), n, before + first]
            for n, first in enumerate(firsts)
        ]


@dataclass(frozen=True, eq=False)
class CodedRows:
    """Rows of the past that lie in codes. Every new token sees all of them."""

    read: Callable[[int], tuple[Tensor, Tensor]]
    """Keys and values of one layer, decoded, `[kv_heads, rows, head_dim]`: what the codes mean."""
    num_rows: int
    tiles: Tensor | None
    """Int64 `[tiles, COLUMNS]` on the device; None where no kernel reads them."""
    first_row: int
    """Rows before the first tile, as `tiles` count them."""


def in_kernels(coded: CodedRows | None, device: torch.device) -> bool:
    """Whether a packed pass on a device can read these rows: on CUDA only kernels do, elsewhere plain PyTorch may."""
    return coded is None or coded.tiles is not None or device.type != "cuda"


def coding_kernels(device: torch.device) -> Any:
    """The compiled kernels; None where plain PyTorch does it (a CPU without Triton's interpreter)."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    from onlooker.kernels import _coded_rows_triton

    return _coded_rows_triton


def encode_block(
    keys: Tensor, values: Tensor, block: Tensor, form: Form, table: Tensor, slot: int, before: int, kernels: Any
) -> None:
    """Encode keys and values `[layers, kv_heads, tokens, head_dim]` (dense in a row) into the bytes of a block, and
    write its tiles into `table` from row `slot` on."""
    layers, heads, tokens, dim = keys.shape
    assert keys.stride() == values.stride() and keys.stride()[2:] == (dim, 1), "keys and values lie alike"
    groups = -(-tokens // form.group)
    kernels.encode_block[(layers * heads, groups)](
        *(keys, values, block, table, keys.stride(0), keys.stride(1), tokens, layers, slot, before, block.data_ptr()),
        H=heads,
        D=dim,
        KIND=KINDS.index(form.kind),
        GROUP=form.group,
        N=max(16, 1 << (form.group - 1).bit_length()),
        num_warps=4,
    )


class Scratch:
    """Room where passes lay out rows in codes, one layer at a time, for all tiles of queries that read them.

    Of a frame's 58 tokens and 7 query heads a key-value head, four tiles read every code: made numbers once and written
    down, a layer of 16 streams of 5,000 rows costs three times the bytes of its codes more to move, and saves three of
    four conversions.
    """

    def __init__(self, spec: ModelSpec, num_rows: int, singles: bool = False) -> None:
        """`singles`: also of segments that one tile of queries reads, such as words of answers. Nothing is read twice
        there, but a program that reads codes takes longer than one that reads rows, and a pass waits for its last: a
        layer of 32 frames beside 12 words took 800 us, and 759 with theirs laid out (H100, int4)."""
        self.num_rows, self.singles = num_rows, singles
        self.rows = torch.empty(2, spec.num_kv_heads, num_rows, spec.head_dim, dtype=spec.dtype, device=spec.device)
        """Keys and values, `[2, kv_heads, rows, head_dim]`."""


def decode_tiles(
    table: Tensor, num_segments: int, scratch: Scratch, layer: int, num_layers: int, codes: dict[str, int], tiles: Tiles
) -> None:
    """Lay out one layer's rows in codes of the segments of a table that say where (`PassTables`)."""
    from onlooker.kernels import _coded_rows_triton

    kernels: Any = _coded_rows_triton
    _, heads, _, dim = scratch.rows.shape
    kernels.decode_tiles[(num_segments, heads, tiles.shares)](
        *(table, scratch.rows, layer, num_layers, scratch.num_rows),
        H=heads,
        D=dim,
        SHARES=tiles.shares,
        **codes,
        num_warps=tiles.share_warps,
    )
