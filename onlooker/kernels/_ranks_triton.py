"""Triton kernels that choose tokens: among the best of a frame, in order, dense ones, and the nearest of them.

Imported only where Triton is there; `ranks` and `density` launch them, and their plain forms say what they must equal.
"""

# Sums and minima are tensors here, and no tuples of them.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def in_steps(value, steps):
    """The nearest whole number of steps, of two the even one, by what float32 cannot hold of large numbers."""
    return (value * steps + 12582912.0) - 12582912.0


@triton.jit
def among(scores, count, found, tokens, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program counts, for some tokens of a frame, those in front of them, and says who is among the best."""
    frame = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = own < tokens
    mine = tl.load(scores + frame * tokens + own, mask=there, other=0.0)
    before = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, tokens, BLOCK):
        place = start + tl.arange(0, BLOCK)
        other = tl.load(scores + frame * tokens + place, mask=place < tokens, other=float("-inf"))
        ahead = (other[None, :] > mine[:, None]) | ((other[None, :] == mine[:, None]) & (place[None, :] < own[:, None]))
        before += tl.sum(ahead.to(tl.int32), axis=1)
    limit = tl.load(count + frame)
    tl.store(found + frame * tokens + own, before.to(limit.dtype) < limit, mask=there)


@triton.jit
def within(scores, part, rank, tokens, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program counts, for some tokens of a stream, those of the same part in front of them."""
    stream = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = own < tokens
    mine = tl.load(scores + stream * tokens + own, mask=there, other=0.0)
    home = tl.load(part + stream * tokens + own, mask=there, other=0).to(tl.int32)
    before = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, tokens, BLOCK):
        place = start + tl.arange(0, BLOCK)
        other = tl.load(scores + stream * tokens + place, mask=place < tokens, other=0.0)
        where = tl.load(part + stream * tokens + place, mask=place < tokens, other=-1).to(tl.int32)
        ahead = (other[None, :] > mine[:, None]) | ((other[None, :] == mine[:, None]) & (place[None, :] < own[:, None]))
        before += tl.sum((ahead & (where[None, :] == home[:, None])).to(tl.int32), axis=1)
    tl.store(rank + stream * tokens + own, before.to(tl.int64), mask=there)


@triton.jit
def kept_first(mask, order, counts, tokens, BLOCK: tl.constexpr):
    """A program puts the places of a stream's tokens in order, those that are kept first, and counts them."""
    stream = tl.program_id(0).to(tl.int64)
    base = stream * tokens
    rest = 0
    for start in range(0, tokens, BLOCK):
        place = start + tl.arange(0, BLOCK)
        rest += tl.sum(tl.load(mask + base + place, mask=place < tokens, other=0).to(tl.int32), axis=0)
    tl.store(counts + stream, rest.to(tl.int64))
    kept = 0
    for start in range(0, tokens, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < tokens
        keeps = (tl.load(mask + base + place, mask=inside, other=0) != 0).to(tl.int32)
        leaves = inside.to(tl.int32) - keeps
        to = tl.where(keeps > 0, kept + tl.cumsum(keeps, axis=0), rest + tl.cumsum(leaves, axis=0)) - 1
        tl.store(order + base + to, base + place, mask=inside)
        kept += tl.sum(keeps, axis=0)
        rest += tl.sum(leaves, axis=0)


@triton.jit
def dense(
    near, among, distance, density, farthest, root, same, steps, tokens, k,
    PRODUCTS: tl.constexpr, AMONG: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program makes the distances of some tokens of a frame from all others, how dense they are by their nearest, in
    steps, and how far the farthest is. `near` are distances, or inner products."""
    frame = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    there = (own < tokens)[:, None] & (cols < tokens)[None, :]
    square = frame * tokens * tokens
    at = square + own[:, None] * tokens + cols[None, :]
    apart = tl.load(near + at, mask=there, other=0.0)
    if PRODUCTS:
        mine = tl.load(near + square + own * (tokens + 1), mask=own < tokens, other=0.0)
        others = tl.load(near + square + cols * (tokens + 1), mask=cols < tokens, other=0.0)
        both = mine[:, None] + others[None, :]
        left = both - 2 * apart
        apart = tl.sqrt(tl.where(left <= same * both, 0.0, left))
    apart = apart / root
    if AMONG:
        one = tl.load(among + frame * tokens + own, mask=own < tokens, other=0) != 0
        other = tl.load(among + frame * tokens + cols, mask=cols < tokens, other=0) != 0
        apart = tl.where(one[:, None] & other[None, :], apart, float("inf"))
    tl.store(distance + at, apart, mask=there)
    apart = tl.where(there, apart, float("inf"))
    finite = apart < float("inf")
    tl.store(farthest + frame * tokens + own, tl.max(tl.where(finite, apart, 0.0), axis=1), mask=own < tokens)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    number = tl.zeros((ROWS,), dtype=tl.float32)
    for _ in range(k):
        least = tl.min(apart, axis=1)
        first = tl.min(tl.where(apart == least[:, None], cols[None, :], BLOCK), axis=1)
        found = least < float("inf")
        total += tl.where(found, least * least, 0.0)
        number += found.to(tl.float32)
        apart = tl.where(cols[None, :] == first[:, None], float("inf"), apart)
    worth = in_steps(tl.exp(-total / tl.maximum(number, 1.0)), steps)
    tl.store(density + frame * tokens + own, worth, mask=own < tokens)


@triton.jit
def scored(
    distance, density, farthest, among, score, steps, tokens,
    AMONG: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program scores some tokens of a frame: how dense, and how far from the nearest denser one."""
    frame = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside, within = own < tokens, cols < tokens
    there = inside[:, None] & within[None, :]
    at = frame * tokens * tokens + own[:, None] * tokens + cols[None, :]
    apart = tl.load(distance + at, mask=there, other=float("inf"))
    mine = tl.load(density + frame * tokens + own, mask=inside, other=0.0)
    others = tl.load(density + frame * tokens + cols, mask=within, other=-1.0)
    denser = (others[None, :] > mine[:, None]) | ((others[None, :] == mine[:, None]) & (cols[None, :] < own[:, None]))
    by = tl.min(tl.where(denser, apart, float("inf")), axis=1)
    reach = tl.load(farthest + frame * tokens + own, mask=inside, other=0.0)
    most = tl.max(tl.load(farthest + frame * tokens + cols, mask=within, other=0.0), axis=0)
    by = tl.where(by < float("inf"), by, reach)
    worth = in_steps((mine / steps) * by / tl.maximum(most, 1e-12), steps)
    if AMONG:
        one = tl.load(among + frame * tokens + own, mask=inside, other=0) != 0
        worth = tl.where(one, worth, -1.0)
    tl.store(score + frame * tokens + own, worth, mask=inside)


@triton.jit
def nearest(distance, scores, best, centre, owner, tokens, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program finds, for some tokens of a frame, the nearest centre: of the best, those with a score from 0 on."""
    frame = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    inside, within = own < tokens, cols < tokens
    row = frame * tokens
    mine = (tl.load(best + row + own, mask=inside, other=0) != 0) & (
        tl.load(scores + row + own, mask=inside, other=-1.0) >= 0
    )
    others = (tl.load(best + row + cols, mask=within, other=0) != 0) & (
        tl.load(scores + row + cols, mask=within, other=-1.0) >= 0
    )
    at = row * tokens + own[:, None] * tokens + cols[None, :]
    apart = tl.load(distance + at, mask=inside[:, None] & within[None, :], other=float("inf"))
    apart = tl.where(others[None, :], apart, float("inf"))
    least = tl.min(apart, axis=1)
    first = tl.min(tl.where(apart == least[:, None], cols[None, :], BLOCK), axis=1)
    tl.store(owner + row + own, tl.where(mine, own, first).to(tl.int64), mask=inside)
    tl.store(centre + row + own, mine, mask=inside)
