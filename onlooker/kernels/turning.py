"""Keys that lie rotated, turned by so many positions more: one launch, where PyTorch takes eighteen.

What stays in front of a window that slides moves up with every frame of every stream, a few rows of each layer. A
kernel finds the angle of the step as the sum of two that lie in tables: so many small steps, and so many of `FEW`.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FEW = 1 << 12
"""Positions of the table of small steps, and by how many those of the other lie apart."""
MOST = FEW * FEW
"""Steps below this are in the tables: half a year at a frame a second and one token a frame."""
ROWS = 16


class Tables:
    """Angles of one rotary for the kernel, float32 `[2 * FEW, head_dim]`: cosines, then sines, of half the channels."""

    def __init__(self, turn: Callable[[Tensor], tuple[Tensor, Tensor]], axes: int, device: torch.device) -> None:
        """`turn` gives cosines and sines of steps int64 `[axes, steps]`, the same for both halves of the channels."""
        from onlooker.kernels import _turning_triton

        self._kernels: Any = _turning_triton
        steps = torch.arange(FEW, device=device)
        steps = torch.cat([steps, steps * FEW]).expand(axes, -1)
        half = [part[:, : part.shape[1] // 2] for part in turn(steps)]
        self.angles = torch.cat(half, dim=1).contiguous()

    def turned(self, keys: Tensor, step: int) -> Tensor:
        """Keys `[layers, kv_heads, tokens, head_dim]`, dense in a row, turned by a step below `MOST`: a copy."""
        layers, heads, tokens, dim = keys.shape
        assert keys.stride()[2:] == (dim, 1) and 0 <= step < MOST, "rows are dense, and the step is in the tables"
        out = torch.empty(keys.shape, dtype=keys.dtype, device=keys.device)
        self._kernels.turn_keys[(layers * heads, -(-tokens // ROWS))](
            *(keys, out, self.angles, step % FEW, step // FEW, tokens, keys.stride(0), keys.stride(1)),
            FEW=FEW,
            H=heads,
            D=dim,
            ROWS=ROWS,
            num_warps=1,
        )
        return out


def has_kernels(device: torch.device, head_dim: int) -> bool:
    """Whether the kernel runs there: on CUDA, or in Triton's interpreter, for heads of a power of two."""
    return (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1") and not head_dim & (head_dim - 1)
