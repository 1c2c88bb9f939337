"""Triton kernels between the products of a language layer: residual with RMS norm, and SiLU with product.

Imported only where Triton is there; `language_rows` says in plain PyTorch what each must equal, rounding included.
"""

import triton
import triton.language as tl


@triton.jit
def _added_and_normed(hidden, more, weight, row, cols, dim, eps, ADDS: tl.constexpr):
    """`hidden += more` of one row in place (if ADDS), and its RMS norm."""
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
    return (scale.to(tl.float32) * scaled.to(tl.float32)).to(element)


@triton.jit
def add_norm(hidden, more, weight, normed, dim, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    """`hidden += more` in place (if ADDS), and its RMS norm beside it. One program a row."""
    row = tl.program_id(0).to(tl.int64) * dim
    cols = tl.arange(0, BLOCK)
    out = _added_and_normed(hidden, more, weight, row, cols, dim, eps, ADDS)
    tl.store(normed + row + cols, out, mask=cols < dim)


@triton.jit
def _store_8(values, scale, codes, at, inside, ROUNDS: tl.constexpr):
    """The nearest E4M3 numbers. A GPU rounds to the nearest and stays within the largest; Triton's interpreter, which
    tests this, loses the carry, so that there numbers are rounded before (ROUNDS)."""
    bounded = values / scale
    if ROUNDS:
        bounded = tl.minimum(tl.maximum(bounded, -448.0), 448.0)
        exponent = (bounded.to(tl.int32, bitcast=True) >> 23) & 255
        quantum = ((tl.maximum(exponent, 121) - 3) << 23).to(tl.float32, bitcast=True)
        bounded = ((bounded / quantum + 12582912.0) - 12582912.0) * quantum
    tl.store(codes + at, bounded.to(tl.float8e4nv), mask=inside)


@triton.jit
def add_norm_8(
    hidden, more, weight, codes, scales, dim, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr
):
    """As `add_norm`, in 8 bits with a scale a row."""
    row = tl.program_id(0).to(tl.int64) * dim
    cols = tl.arange(0, BLOCK)
    out = _added_and_normed(hidden, more, weight, row, cols, dim, eps, ADDS).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(out), axis=0), 1e-12) / 448.0
    tl.store(scales + tl.program_id(0), scale)
    _store_8(out, scale, codes, row + cols, cols < dim, ROUNDS)


@triton.jit
def eight_bits(rows, codes, scales, stride, width, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    """Rows in 8 bits with a scale each. One program a row."""
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    values = tl.load(rows + number * stride + cols, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12) / 448.0
    tl.store(scales + number, scale)
    _store_8(values, scale, codes, number * width + cols, inside, ROUNDS)


@triton.jit
def _silu_product(gate, up, at, inside):
    opened = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    opened = (opened / (1.0 + tl.exp(-opened))).to(gate.dtype.element_ty)
    passed = tl.load(up + at, mask=inside, other=0.0)
    return (opened.to(tl.float32) * passed.to(tl.float32)).to(gate.dtype.element_ty)


@triton.jit
def silu_product(gate, up, out, width, BLOCK: tl.constexpr):
    """`silu(gate) * up`. Grid (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64) * width
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    tl.store(out + row + cols, _silu_product(gate, up, row + cols, inside), mask=inside)


@triton.jit
def silu_product_8(gate, up, codes, scales, width, MAIN: tl.constexpr, REST: tl.constexpr, ROUNDS: tl.constexpr):
    """`silu(gate) * up` in 8 bits with a scale a row. One program a row, all of which it keeps in registers, in two
    parts as most widths are no power of two: a loop waited for memory in each of its rounds, and went over the row
    twice."""
    row = tl.program_id(0).to(tl.int64) * width
    cols, more = tl.arange(0, MAIN), MAIN + tl.arange(0, REST)
    main = _silu_product(gate, up, row + cols, cols < width)
    rest = _silu_product(gate, up, row + more, more < width)
    most = tl.maximum(tl.max(tl.abs(main.to(tl.float32)), axis=0), tl.max(tl.abs(rest.to(tl.float32)), axis=0))
    scale = tl.maximum(most, 1e-12) / 448.0
    tl.store(scales + tl.program_id(0), scale)
    _store_8(main.to(tl.float32), scale, codes, row + cols, cols < width, ROUNDS)
    _store_8(rest.to(tl.float32), scale, codes, row + more, more < width, ROUNDS)
