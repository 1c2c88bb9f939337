"""Triton kernel that turns keys by one step on all axes.

Imported only where Triton is there; `turning` launches it, and says in plain PyTorch what it must equal.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["near", "far", "rows"])
def turn_keys(
    keys, out, tables, near, far, rows, layer_stride, head_stride, FEW: tl.constexpr, H: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Some rows of one head of one layer; the angle is the sum of those of two tables. Grid (layers * heads, parts)."""
    number = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    HALF: tl.constexpr = D // 2
    cols = tl.arange(0, HALF)
    little, much = tables + near * D, tables + (FEW + far) * D
    cos_near, sin_near = tl.load(little + cols), tl.load(little + HALF + cols)
    cos_far, sin_far = tl.load(much + cols), tl.load(much + HALF + cols)
    cos = (cos_near * cos_far - sin_near * sin_far)[None, :]
    sin = (sin_near * cos_far + cos_near * sin_far)[None, :]
    inside = row[:, None] < rows
    at = keys + (number // H) * layer_stride + (number % H) * head_stride + row[:, None] * D + cols[None, :]
    left = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    to = out + (number * rows + row[:, None]) * D + cols[None, :]
    element = out.dtype.element_ty
    tl.store(to, (left * cos - right * sin).to(element), mask=inside)
    tl.store(to + HALF, (right * cos + left * sin).to(element), mask=inside)
