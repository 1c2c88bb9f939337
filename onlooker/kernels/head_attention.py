"""Attention of a vision tower whose heads have an odd width, without padding every head to the next power of two.

SigLIP-so400m has heads of 72. PyTorch's flash kernel works on 96 of them and a plain Triton one on 128; ours splits a
head into 64 columns and a rest of 8 (worked on as 16). Which way is fastest depends on the device and on the number of
queries: `python -m benchmarks.encode_streams` times them all.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from onlooker.core.errors import ModelError
from onlooker.kernels.rows import ValueRows, launched, power_of_two

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class Tile:
    """Shape of one program of the split kernel."""

    queries: int
    keys: int
    warps: int
    stages: int


TILES = {"split": Tile(64, 64, 4, 3)}
"""Few queries suit chosen tokens, of which a frame has few: padding them is waste."""
IN_PLACE = {"in_place": Tile(64, 64, 4, 5)}
"""Our kernel for chosen tokens, reading values where they are."""
WAYS = ("torch", *BACKENDS, *TILES)
"""PyTorch's own choice (the plain form), one of its backends, or our kernel with one of its tiles."""


def wide(part: Tensor) -> Tensor:
    """In float32 at least: scores are summed up by their exponentials."""
    return part.float() if part.element_size() < 4 else part


def attend_heads(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, scale: float, way: str) -> Tensor:
    """Attention of all heads, heads side by side: contiguous `[streams, queries, dim]`.

    `queries` is `[streams, queries, dim]`, `keys` and `values` are `[streams, tokens, dim]`. Rows may lie apart, but
    for our kernel at one distance through all streams. `way` is one of `WAYS`.
    """
    assert way in WAYS, f"there is no way to attend called {way}"
    head_dim = queries.shape[-1] // num_heads
    if way not in TILES:
        q, k, v = (part.unflatten(-1, (num_heads, head_dim)).transpose(1, 2) for part in (queries, keys, values))
        with sdpa_kernel(BACKENDS[way]) if way in BACKENDS else nullcontext():
            return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
    return _attend(queries, keys, values, None, num_heads, scale, TILES[way])


def attend_in_place(queries: Tensor, keys: Tensor, values: ValueRows, num_heads: int, scale: float, way: str) -> Tensor:
    """The same over values that are not side by side, `way` being one of `IN_PLACE`."""
    head_bytes = queries.shape[-1] // num_heads * queries.element_size()
    if head_bytes % 16:
        raise ModelError("this kernel reads heads by 16 bytes", given=f"{head_bytes}", do="use another way to attend")
    return _attend(queries, keys, values.fresh, values, num_heads, scale, IN_PLACE[way])


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, mixed: ValueRows | None, num_heads: int, scale: float, tile: Tile
) -> Tensor:
    from onlooker.kernels import _heads_triton

    kernel: Any = _heads_triton.attend
    for part in (queries, keys, values if mixed is None else keys):
        assert len(part) == 1 or part.stride(0) == part.shape[1] * part.stride(1), "streams must follow one another"
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    streams, count, dim = queries.shape
    head_dim = dim // num_heads
    main = 1 << (head_dim.bit_length() - 1)
    kernel[(-(-count // tile.queries), num_heads, streams)](
        queries,
        keys,
        values,
        out,
        keys if mixed is None else mixed.place,
        keys if mixed is None else mixed.stored.addresses,
        0 if mixed is None else mixed.layer,
        count,
        keys.shape[1],
        dim,
        scale * math.log2(math.e),
        queries.stride(1),
        keys.stride(1),
        values.stride(-2),
        out.stride(1),
        IN_PLACE=mixed is not None,
        HEAD=head_dim,
        MAIN=main,
        REST=power_of_two(head_dim - main) if head_dim > main else 16,
        M=tile.queries,
        N=tile.keys,
        **launched(queries.device, tile.warps),
        num_stages=tile.stages,
    )
    return out
