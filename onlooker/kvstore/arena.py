"""Rows of keys and values of all layers in three large tensors, which are never copied row by row in Python."""

import weakref

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool = False) -> Tensor:
    """Uninitialised memory that may be written inside and outside of inference mode alike."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)


class Reader:
    """A claim on rows `[start, end)` of an arena: while it lives, they are not overwritten."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end


class Arena:
    """Room for `capacity` rows: raw keys, values, and keys rotated for the watching view.

    Each of `keys`, `values` and `rotated` is `[layers, kv_heads, capacity, head_dim]`, so that the resident rows of
    one layer are one slice, which a fused kernel can take by pointer and stride.
    """

    def __init__(self, spec: ModelSpec, capacity: int) -> None:
        shape = (spec.num_layers, spec.num_kv_heads, capacity, spec.head_dim)
        self.capacity = capacity
        self.keys, self.values, self.rotated = (allocate(shape, spec.dtype, spec.device) for _ in range(3))
        self.readers: weakref.WeakSet[Reader] = weakref.WeakSet()

    @staticmethod
    def row_bytes(spec: ModelSpec) -> int:
        """Bytes of one row in all three tensors."""
        return spec.kv_bytes_per_token * 3 // 2

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Raw keys, values, rotated keys."""
        return self.keys, self.values, self.rotated

    def is_read(self, start: int, end: int) -> bool:
        """Whether an open question reads any of the rows `[start, end)`."""
        return any(reader.start < end and start < reader.end for reader in self.readers)

    def copy_rows(self, source: "Arena", rows: slice | Tensor, at: int, count: int) -> None:
        """Copy `count` rows of `source` (perhaps itself: the ranges may overlap) to the rows that start at `at`.

        Layer by layer, so that the temporary copy is one layer large.
        """
        for target, origin in zip(self.tensors, source.tensors, strict=True):
            for layer in range(target.shape[0]):
                taken = origin[layer, :, rows]
                target[layer, :, at : at + count] = taken.clone() if source is self else taken

    def num_bytes(self) -> tuple[int, int]:
        """Bytes of raw keys and values, and of rotated keys."""
        return self.keys.nbytes + self.values.nbytes, self.rotated.nbytes
