"""Rows in two parts, the largest power of two and the rest, so that no lane of a program is without a column.

Imported only where Triton is there. A row of 1152 columns is worked on as 1024 and 128 instead of 2048: these kernels
wait for memory, and what is in flight is bounded by registers.
"""

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding and taking it away rounds half to even."""


@triton.jit
def unpacked(packed):
    """Numbers of bytes `[..., n]` that hold two each, `[..., 2 n]`, -7 to 7; 136 is two zeros."""
    low = (packed & 15).to(tl.int8) - 8
    high = (packed >> 4).to(tl.int8) - 8
    return tl.interleave(low, high)


@triton.jit
def load_pairs(at, mask):
    """Bytes that hold two numbers each, two zeros where there are none. These are no `other` of the load: Triton 3.6
    puts a constant of 8 bits above 127 into a load of several bytes with its sign (0x88 as 0xffffff88)."""
    packed = tl.load(at, mask=mask, other=0)
    return tl.where(mask, packed, tl.full(packed.shape, 136, tl.uint8))


@triton.jit
def load_row(at, dim, MAIN: tl.constexpr, REST: tl.constexpr):
    """A row as it is."""
    rest = tl.arange(0, REST)
    return tl.load(at + tl.arange(0, MAIN)), tl.load(at + MAIN + rest, mask=rest < dim - MAIN, other=0)


@triton.jit
def load_row_if(there, at, dim, MAIN: tl.constexpr, REST: tl.constexpr):
    """A row as it is where `there` is 1, else (0) zeros. So all that a program may need is asked for at once: these
    kernels wait for memory."""
    main, rest = tl.arange(0, MAIN), tl.arange(0, REST)
    mask = rest < (dim - MAIN) * there
    return tl.load(at + main, mask=main < dim * there, other=0), tl.load(at + MAIN + rest, mask=mask, other=0)


@triton.jit
def store_row(at, main, rest, dim, MAIN: tl.constexpr, REST: tl.constexpr):
    """A row into its place."""
    kind = at.dtype.element_ty
    more = tl.arange(0, REST)
    tl.store(at + tl.arange(0, MAIN), main.to(kind))
    tl.store(at + MAIN + more, rest.to(kind), mask=more < dim - MAIN)


@triton.jit
def load_packed(at, dim, MAIN: tl.constexpr, REST: tl.constexpr):
    """A row that is kept in 4 bits, without its scale."""
    rest = tl.arange(0, REST // 2)
    main = tl.load(at + tl.arange(0, MAIN // 2))
    return unpacked(main), unpacked(load_pairs(at + MAIN // 2 + rest, rest < (dim - MAIN) // 2))


@triton.jit
def load_packed_if(there, at, dim, MAIN: tl.constexpr, REST: tl.constexpr):
    """The same where `there` is 1, else (0) zeros."""
    main, rest = tl.arange(0, MAIN // 2), tl.arange(0, REST // 2)
    packed = load_pairs(at + main, main < dim // 2 * there)
    return unpacked(packed), unpacked(load_pairs(at + MAIN // 2 + rest, rest < (dim - MAIN) // 2 * there))


@triton.jit
def store_packed(at, main, rest, dim, MAIN: tl.constexpr, REST: tl.constexpr):
    """Numbers from -7 to 7, two in a byte."""
    more = tl.arange(0, REST // 2)
    low, high = tl.split(tl.reshape(main.to(tl.int32) + 8, (MAIN // 2, 2)))
    tl.store(at + tl.arange(0, MAIN // 2), (low + 16 * high).to(tl.uint8))
    low, high = tl.split(tl.reshape(rest.to(tl.int32) + 8, (REST // 2, 2)))
    tl.store(at + MAIN // 2 + more, (low + 16 * high).to(tl.uint8), mask=more < (dim - MAIN) // 2)


@triton.jit
def _most(main, rest):
    return tl.maximum(tl.max(tl.abs(main), axis=0), tl.max(tl.abs(rest), axis=0))


@triton.jit
def in_8(main, rest):
    """A row in 8 bits, whole numbers in float32, and its scale, float32."""
    scale = tl.maximum(_most(main, rest), 1e-8) / 127.0
    return (main / scale + ROUND) - ROUND, (rest / scale + ROUND) - ROUND, scale


@triton.jit
def in_4(main, rest):
    """A row in 4 bits, whole numbers in float32, and its scale, float32."""
    scale = tl.maximum(_most(main, rest) / 7.0, 6e-8)
    return (main / scale + ROUND) - ROUND, (rest / scale + ROUND) - ROUND, scale


@triton.jit
def norm_of(
    main, rest, weight, bias, dim, eps, kind: tl.constexpr, RMS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """The norm of a row (float32) of a model that computes in `kind`, float32."""
    inside = tl.arange(0, REST) < dim - MAIN
    w_main, w_rest = load_row(weight, dim, MAIN, REST)
    b_main, b_rest = load_row(bias, dim, MAIN, REST)  # before any sum is waited for
    w_main, w_rest = w_main.to(tl.float32), w_rest.to(tl.float32)
    if RMS:
        scale = 1.0 / tl.sqrt((tl.sum(main * main, axis=0) + tl.sum(rest * rest, axis=0)) / dim + eps)
        main, rest = (main * scale).to(kind).to(tl.float32) * w_main, (rest * scale).to(kind).to(tl.float32) * w_rest
    else:
        mean = (tl.sum(main, axis=0) + tl.sum(rest, axis=0)) / dim
        main, rest = main - mean, tl.where(inside, rest - mean, 0.0)
        scale = 1.0 / tl.sqrt((tl.sum(main * main, axis=0) + tl.sum(rest * rest, axis=0)) / dim + eps)
        main = main * scale * w_main + b_main.to(tl.float32)
        rest = rest * scale * w_rest + b_rest.to(tl.float32)
    return main, rest


@triton.jit
def store_norm(
    at, main, rest, weight, bias, dim, eps, RMS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """The norm of a row (float32) into its place."""
    main, rest = norm_of(main, rest, weight, bias, dim, eps, at.dtype.element_ty, RMS, MAIN, REST)
    store_row(at, main, rest, dim, MAIN, REST)
