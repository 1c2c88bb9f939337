"""Many small copies as one launch: ranges of bytes, from the device's memory or pinned memory of the host.

What a question recalls are hundreds of pieces in every layer, and one copy each costs the host more time than their
bytes cost the bus. A kernel reads pinned memory where it lies.
"""

import os
from types import ModuleType

import numpy as np
import torch

COLUMNS = 3
"""Numbers of a range: address of its source, of its target, and its bytes."""
PIECE = 8192
"""Bytes that one program copies."""


def range_kernels(device: torch.device) -> ModuleType | None:
    """The compiled kernel; None where tensors are copied one by one (a CPU without Triton's interpreter)."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    from onlooker.kernels import _ranges_triton

    return _ranges_triton


def copy_ranges(ranges: np.ndarray, device: torch.device, kernels: ModuleType) -> None:
    """Copy ranges, int64 `[ranges, COLUMNS]`, none of which overlaps another's target. Does not wait for the device:
    all of them must live, and sources stay as they are, until it is done."""
    aligned = (ranges % 16 == 0).all(1)
    for unit, some in ((16, ranges[aligned]), (1, ranges[~aligned])):
        if len(some):
            table = torch.from_numpy(np.ascontiguousarray(some))
            if device.type == "cuda":
                table = table.pin_memory().to(device, non_blocking=True)
            pieces = -(-int(some[:, 2].max()) // PIECE)
            kernels.copy_ranges[(len(some), pieces)](table, PIECE=PIECE, UNIT=unit, num_warps=4)
