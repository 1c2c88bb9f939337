"""Blocks that a codec has encoded: their parts, in one piece of memory each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts import Codec, ModelSpec
from onlooker.kvstore.arena import allocate

ALIGNED = 16
"""Every part begins at a multiple of so many bytes."""


@dataclass(frozen=True, eq=False)
class Coded:
    """One block in the host tier. Never written to once it is made."""

    parts: Mapping[str, Tensor]
    """By name, each `[layers, ...]` as `Codec.parts` says."""
    nbytes: int


def encoded_bytes(spec: ModelSpec, codec: Codec, num_tokens: int) -> int:
    """Bytes of a block of so many tokens in the host tier."""
    return sum(_padded(math.prod(shape) * kind.itemsize) for shape, kind in parts_of(spec, codec, num_tokens).values())


def park(spec: ModelSpec, codec: Codec, keys: Tensor, values: Tensor) -> Coded:
    """Encode keys and values `[layers, kv_heads, tokens, head_dim]` into host memory, pinned where CUDA is there.

    Raises `CapacityError` when there is no memory. Not waited for: every reader on the device comes later in the same
    stream, and `export` waits.
    """
    return hold(spec, codec, keys.shape[2], codec.encode(keys, values))


def hold(spec: ModelSpec, codec: Codec, num_tokens: int, given: Mapping[str, Tensor]) -> Coded:
    """A block whose parts are given, copied. Raises `CapacityError` when there is no memory."""
    wanted, cuda = parts_of(spec, codec, num_tokens), spec.device.type == "cuda"
    total = encoded_bytes(spec, codec, num_tokens)
    slab = allocate((total,), torch.uint8, torch.device("cpu"), pinned=cuda)
    parts, start = {}, 0
    for name, (shape, kind) in wanted.items():
        size = math.prod(shape) * kind.itemsize
        parts[name] = slab[start : start + size].view(kind).view(shape).copy_(given[name], non_blocking=cuda)
        start += _padded(size)
    return Coded(parts, slab.nbytes)


def parts_of(spec: ModelSpec, codec: Codec, num_tokens: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape, layers first, and type of each part of a block."""
    parts = codec.parts(spec.num_kv_heads, num_tokens, spec.head_dim, spec.dtype)
    return {name: ((spec.num_layers, *shape), kind) for name, (shape, kind) in parts.items()}


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
