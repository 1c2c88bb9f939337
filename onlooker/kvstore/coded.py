"""Blocks that a codec has encoded: their parts, in one piece of memory each, on the device or in the host's memory."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import Codec, ModelSpec
from onlooker.kernels.ranges import copy_ranges
from onlooker.kvstore.arena import allocate

ALIGNED = 16
"""Every part begins at a multiple of so many bytes."""
BLOCKS_AT_ONCE = 16
"""Blocks that are decoded together, which bounds the memory that it takes."""


@dataclass(frozen=True, eq=False)
class Coded:
    """One block as its codec wrote it. Never written to once it is filled, so that forks and questions share it."""

    parts: Mapping[str, Tensor]
    """By name, each `[layers, ...]` as `Codec.parts` says."""
    slab: Tensor
    """All of them as bytes, one behind the other."""
    num_tokens: int
    codec: Codec
    """What wrote it."""
    on_disk: bool = False
    """Whether the memory is that of a file."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.slab.nbytes

    @property
    def address(self) -> int:
        """Where its first byte lies."""
        return self.slab.data_ptr()

    def fill(self, given: Mapping[str, Tensor]) -> None:
        """Copy these parts in. Not waited for: every reader on the device comes later in the same stream, and `export`
        waits."""
        for name, part in self.parts.items():
            part.copy_(given[name], non_blocking=True)


def encoded_bytes(spec: ModelSpec, codec: Codec, num_tokens: int) -> int:
    """Bytes of a block of so many tokens."""
    return sum(_padded(math.prod(shape) * kind.itemsize) for shape, kind in parts_of(spec, codec, num_tokens).values())


def park(spec: ModelSpec, codec: Codec, keys: Tensor, values: Tensor) -> Coded:
    """Encode keys and values `[layers, kv_heads, tokens, head_dim]` into host memory, pinned where CUDA is there.

    Raises `CapacityError` when there is no memory.
    """
    return hold(spec, codec, keys.shape[2], codec.encode(keys, values))


def hold(spec: ModelSpec, codec: Codec, num_tokens: int, given: Mapping[str, Tensor]) -> Coded:
    """A block in host memory whose parts are given, copied. Raises `CapacityError` when there is no memory."""
    block = room(spec, codec, num_tokens, torch.device("cpu"))
    block.fill(given)
    return block


def room(spec: ModelSpec, codec: Codec, num_tokens: int, device: torch.device) -> Coded:
    """Room for a block, to be filled once; pinned when it is in the host's memory and CUDA is there. Raises
    `CapacityError` when there is no memory."""
    total = encoded_bytes(spec, codec, num_tokens)
    slab = allocate((total,), torch.uint8, device, pinned=device.type == "cpu" and spec.device.type == "cuda")
    return laid(spec, codec, num_tokens, slab)


def laid(spec: ModelSpec, codec: Codec, num_tokens: int, slab: Tensor, on_disk: bool = False) -> Coded:
    """A block in the bytes that are given, as `Coded.slab` of one of its size and codec."""
    wanted, parts, start = parts_of(spec, codec, num_tokens), {}, 0
    for name, (shape, kind) in wanted.items():
        size = math.prod(shape) * kind.itemsize
        parts[name] = slab[start : start + size].view(kind).view(shape)
        start += _padded(size)
    return Coded(parts, slab, num_tokens, codec, on_disk)


def parts_of(spec: ModelSpec, codec: Codec, num_tokens: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape, layers first, and type of each part of a block."""
    parts = codec.parts(spec.num_kv_heads, num_tokens, spec.head_dim, spec.dtype)
    return {name: ((spec.num_layers, *shape), kind) for name, (shape, kind) in parts.items()}


def decode(
    blocks: "list[Coded]", layers: slice, dtype: torch.dtype, device: torch.device, kernels: ModuleType | None = None
) -> tuple[Tensor, Tensor]:
    """Some layers of blocks of one size and codec again: keys and values `[blocks, layers, kv_heads, tokens, head_dim]`
    on a device. With `kernels` (`kernels.ranges`) their parts are read where they lie, which has to be pinned memory or
    the device's. Raises `CapacityError` when there is no memory for their parts there."""
    parts, ranges = {}, []
    for name, like in blocks[0].parts.items():
        shape = (len(blocks), *like[layers].shape)
        parts[name] = to = allocate(shape, like.dtype, device)
        if kernels is None:
            for number, block in enumerate(blocks):
                to[number].copy_(block.parts[name][layers], non_blocking=True)
            continue
        size = to[0].nbytes
        start = like.data_ptr() - blocks[0].address + layers.start * (size // shape[1])
        ranges += [(block.address + start, to.data_ptr() + n * size, size) for n, block in enumerate(blocks)]
    if kernels is not None:
        copy_ranges(np.array(ranges, dtype=np.int64), device, kernels)
    return blocks[0].codec.decode(parts, dtype)


def read_layer(blocks: Iterable[Coded], codec: Codec, layer: int, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """One layer of blocks on the device again, one behind the other: keys and values `[kv_heads, rows, head_dim]`."""
    keys, values = [], []
    for _, same in itertools.groupby(blocks, key=lambda block: block.num_tokens):
        run = list(same)
        for start in range(0, len(run), BLOCKS_AT_ONCE):
            some = run[start : start + BLOCKS_AT_ONCE]
            parts = {name: torch.stack([block.parts[name][layer] for block in some]) for name in some[0].parts}
            for into, part in zip((keys, values), codec.decode(parts, spec.dtype), strict=True):
                into.append(part.transpose(0, 1).flatten(1, 2))
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
