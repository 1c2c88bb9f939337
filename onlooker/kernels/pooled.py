"""Rows that are weighted sums of a few others: the tokens of a smaller grid.

As a product with a matrix `[196, 729]` that is nearly all zeros, in two parts since half precision cannot hold its
weights, it took 0.5 ms of a step of 16 frames on an H100; as sums of four rows it reads what it must.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Taps:
    """Which rows make each output, and how much of each, `[outputs, taps]`; outputs of fewer have taps of weight 0."""

    places: Tensor
    """Int64."""
    weights: Tensor
    """Float32."""

    @classmethod
    def of(cls, matrix: Tensor) -> "Taps":
        """Of a linear map `[outputs, rows]`."""
        most = max(1, int((matrix != 0).sum(1).max()))
        largest = matrix.abs().topk(most, dim=1).indices.sort(dim=1).values
        return cls(largest, matrix.float().gather(1, largest))

    def to(self, device: torch.device) -> "Taps":
        """The same on a device."""
        return Taps(self.places.to(device), self.weights.to(device))


def pooling_kernels(device: torch.device) -> Any:
    """The compiled kernel; None where plain PyTorch does it (a CPU without Triton's interpreter)."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    from onlooker.kernels import _pooled_triton

    return _pooled_triton


def mix_rows(rows: Tensor, taps: Taps, kernels: Any = None) -> Tensor:
    """Rows `[streams, rows, dim]` to `[streams, outputs, dim]`: sums in float32, rounded once."""
    if kernels is None:
        return (rows[:, taps.places].float() * taps.weights[..., None]).sum(2).to(rows.dtype)
    streams, tokens, dim = rows.shape
    rows, (outputs, count) = rows.contiguous(), taps.places.shape
    out = rows.new_empty(streams, outputs, dim)
    block = 1 << (dim - 1).bit_length()
    kernels.mix_rows[(outputs, streams)](
        *(rows, taps.places, taps.weights, out, tokens, outputs, dim),
        TAPS=count,
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return out
