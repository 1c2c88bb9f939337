"""Triton kernel of cosines, row by row.

Imported only where Triton is there; `likeness` launches it, and its plain form says what it must equal.
"""

import triton
import triton.language as tl


@triton.jit
def likeness(now, before, alike, dim, shared, BLOCK: tl.constexpr):
    """A program compares one row with its own of `before`, of which `shared` rows in a row have one."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(now + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(before + (row // shared) * dim + cols, mask=inside, other=0.0).to(tl.float32)
    lengths = tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), 1e-8) * tl.maximum(tl.sqrt(tl.sum(y * y, axis=0)), 1e-8)
    tl.store(alike + row, tl.sum(x * y, axis=0) / lengths)
