"""The middle of a gated MLP: SiLU of one half of each row times the other half, in one pass.

PyTorch's two calls write and read the activated half once more, and the middle is the widest tensor of a layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.kernels.rows import Kernels, launched

COLUMNS = 1024
"""Columns a program takes; the most that a row of common towers leaves unused is a third of them."""


def gated_rows(rows: Tensor, kernels: Kernels) -> Tensor:
    """`[rows, 2 * width]`, contiguous, to `[rows, width]`."""
    if kernels is None:
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate) * up
    from onlooker.kernels import _tower_triton

    kernel: Any = _tower_triton.gate
    width = rows.shape[1] // 2
    gated = torch.empty(len(rows), width, dtype=rows.dtype, device=rows.device)
    kernel[(len(rows), -(-width // COLUMNS))](rows, gated, width, BLOCK=COLUMNS, **launched(rows.device))
    return gated
