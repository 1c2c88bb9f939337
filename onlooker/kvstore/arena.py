"""Rows of keys and values of all layers in two large tensors, which are never copied row by row in Python."""

import math
import weakref

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.errors import CapacityError


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool = False) -> Tensor:
    """Uninitialised memory that may be written inside and outside of inference mode alike.

    Raises `CapacityError` when the device has no more.
    """
    try:
        if not torch.is_inference_mode_enabled():  # as a rule: the switch costs as much as the memory
            return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
    except torch.OutOfMemoryError as full:
        wanted = math.prod(shape) * dtype.itemsize
        raise CapacityError(
            "the device has no memory left for keys and values",
            given=f"{wanted} more bytes wanted on {device}",
            do="watch fewer streams, or choose a memory that parks or forgets sooner",
        ) from full


class RowClaim:
    """A claim on rows `[start, end)` of an arena: while it lives, they are not overwritten."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end


class Arena:
    """Room for `capacity` rows: keys, rotated to where they lie, and values.

    Each of `keys` and `values` is `[layers, kv_heads, capacity, head_dim]`, so that the resident rows of one layer are
    one slice, which a fused kernel can take by pointer and stride.
    """

    def __init__(self, spec: ModelSpec, capacity: int) -> None:
        shape = (spec.num_layers, spec.num_kv_heads, capacity, spec.head_dim)
        self.capacity = capacity
        self.keys, self.values = (allocate(shape, spec.dtype, spec.device) for _ in range(2))
        with torch.inference_mode(False):
            # The same memory in pieces of 8 bytes: rows are moved as they are, and a copy has fewer pieces to place.
            wide = spec.head_dim * spec.dtype.itemsize % 8 == 0
            self._moved = tuple(tensor.view(torch.int64) if wide else tensor for tensor in self.tensors)
        self.readers: weakref.WeakSet[RowClaim] = weakref.WeakSet()

    @staticmethod
    def row_bytes(spec: ModelSpec) -> int:
        """Bytes of one row in both tensors."""
        return spec.kv_bytes_per_token

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values

    def is_read(self, start: int, end: int) -> bool:
        """Whether an open question reads any of the rows `[start, end)`."""
        return any(reader.start < end and start < reader.end for reader in self.readers)

    def copy_rows(self, source: "Arena", start: int, end: int, at: int) -> None:
        """Copy the rows `[start, end)` of another arena to the rows that start at `at`. Makes no tensor."""
        for target, origin in zip(self._moved, source._moved, strict=True):
            target[:, :, at : at + end - start] = origin[:, :, start:end]

    def move_rows(self, start: int, end: int, at: int) -> None:
        """Bring the rows `[start, end)` further to the front, to `at`; both may overlap. Makes no tensor: it is done
        in bites as long as the way, each of which lies clear of where it goes."""
        way = start - at
        for first in range(start, end, max(1, way)):
            last = min(first + way, end)
            for tensor in self._moved:
                tensor[:, :, first - way : last - way] = tensor[:, :, first:last]

    def num_bytes(self) -> int:
        """Bytes of both tensors."""
        return self.keys.nbytes + self.values.nbytes
