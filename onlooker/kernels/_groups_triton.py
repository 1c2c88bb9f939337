"""Triton kernels of groups of rows: who belongs to whom, sums, and means.

Imported only where Triton is there; `groups` launches them, and its plain forms say what they must equal.
"""

import triton
import triton.language as tl


@triton.jit
def members(owner, order, first, length, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program puts some rows in order, by owner and then by place, and finds who belongs to them, by counting."""
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = own < rows
    mine = tl.load(owner + own, mask=there, other=0).to(tl.int32)
    before = tl.zeros((ROWS,), dtype=tl.int32)
    less = tl.zeros((ROWS,), dtype=tl.int32)
    equal = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, rows, BLOCK):
        place = start + tl.arange(0, BLOCK)
        other = tl.load(owner + place, mask=place < rows, other=rows + 1).to(tl.int32)
        ahead = (other[None, :] < mine[:, None]) | ((other[None, :] == mine[:, None]) & (place[None, :] < own[:, None]))
        before += tl.sum(ahead.to(tl.int32), axis=1)
        less += tl.sum((other[None, :] < own[:, None]).to(tl.int32), axis=1)
        equal += tl.sum((other[None, :] == own[:, None]).to(tl.int32), axis=1)
    tl.store(order + before, own.to(tl.int64), mask=there)
    tl.store(first + own, less.to(tl.int64), mask=there)
    tl.store(length + own, equal.to(tl.int64), mask=there)


@triton.jit
def totals(values, order, first, length, out):
    """A program adds the numbers of one row's members, one after the other."""
    row = tl.program_id(0)
    begin = tl.load(first + row)
    count = tl.load(length + row)
    total = 0.0
    for number in range(count):
        total += tl.load(values + tl.load(order + begin + number)).to(tl.float32)
    tl.store(out + row, total)


@triton.jit
def blend(values, order, first, length, weight, own, takes, out, dim, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """A program makes one row: as it is, or with the mean of its members, one after the other, in float32."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(values + row * dim + cols, mask=inside, other=0.0)
    mixed = x
    if tl.load(takes + row) != 0:
        begin = tl.load(first + row)
        count = tl.load(length + row)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        divisor = 0.0
        for number in range(count):
            member = tl.load(order + begin + number)
            part = tl.load(values + member * dim + cols, mask=inside, other=0.0).to(tl.float32)
            share = 1.0
            if WEIGHED:
                share = tl.load(weight + member)
            total += part * share
            divisor += share
        kept = tl.load(own + row)
        mixed = (x.to(tl.float32) * kept + total / divisor * (1 - kept)).to(x.dtype)
    tl.store(out + row * dim + cols, mixed, mask=inside)
