"""Triton kernels between the products of a language layer: residual with RMS norm, and SiLU with product.

Imported only where Triton is there; `language_rows` says in plain PyTorch what each must equal, rounding included.
"""

import triton
import triton.language as tl


@triton.jit
def add_norm(hidden, more, weight, normed, dim, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    """`hidden += more` in place (if ADDS), and its RMS norm beside it. One program a row."""
    row = tl.program_id(0).to(tl.int64) * dim
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    element = hidden.dtype.element_ty
    total = tl.load(hidden + row + cols, mask=inside, other=0.0)
    if ADDS:
        added = total.to(tl.float32) + tl.load(more + row + cols, mask=inside, other=0.0).to(tl.float32)
        total = added.to(element)
        tl.store(hidden + row + cols, total, mask=inside)
    exact = total.to(tl.float32)
    mean_square = tl.sum(exact * exact, axis=0) / dim
    scaled = (exact * (1.0 / tl.sqrt(mean_square + eps))).to(element)
    scale = tl.load(weight + cols, mask=inside, other=0.0)
    tl.store(normed + row + cols, (scale.to(tl.float32) * scaled.to(tl.float32)).to(element), mask=inside)


@triton.jit
def silu_product(gate, up, out, width, BLOCK: tl.constexpr):
    """`silu(gate) * up`. Grid (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64) * width
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    element = out.dtype.element_ty
    opened = tl.load(gate + row + cols, mask=inside, other=0.0).to(tl.float32)
    opened = (opened / (1.0 + tl.exp(-opened))).to(element)
    passed = tl.load(up + row + cols, mask=inside, other=0.0)
    tl.store(out + row + cols, (opened.to(tl.float32) * passed.to(tl.float32)).to(element), mask=inside)
