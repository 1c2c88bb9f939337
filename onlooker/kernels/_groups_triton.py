"""Triton kernel of the means of groups of rows.

Imported only where Triton is there; `groups` launches it, and its plain form says what it must equal.
"""

import triton
import triton.language as tl


@triton.jit
def blend(
    values, order, first, length, weight, divisor, own, takes, out, dim, WEIGHED: tl.constexpr, BLOCK: tl.constexpr
):
    """A program makes one row: as it is, or with the sum over its members, one after the other, in float32."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(values + row * dim + cols, mask=inside, other=0.0)
    mixed = x
    if tl.load(takes + row) != 0:
        begin = tl.load(first + row)
        count = tl.load(length + row)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for number in range(count):
            member = tl.load(order + begin + number)
            part = tl.load(values + member * dim + cols, mask=inside, other=0.0).to(tl.float32)
            if WEIGHED:
                part = part * tl.load(weight + member)
            total += part
        share = tl.load(own + row)
        mean = total / tl.load(divisor + row)
        mixed = (x.to(tl.float32) * share + mean * (1 - share)).to(x.dtype)
    tl.store(out + row * dim + cols, mixed, mask=inside)
