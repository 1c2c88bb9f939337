"""Triton kernels of towers with rotary positions, windows and gated MLPs: one program a row, or one a window's head.

Imported only where Triton is there; `rotary`, `window_attention` and `gated` say in plain PyTorch what each must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._vision_triton import behind


@triton.jit(do_not_specialize=["whole", "layer"])
def turn(
    rows,
    stride,
    flat,
    cos,
    sin,
    addresses,
    turned,
    alike,
    whole,
    tokens,
    layer,
    ALL: tl.constexpr,
    COMPARE: tl.constexpr,
    EARLY: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """One row: its heads turned, and (COMPARE, streams from `whole` on) its cosine to the reference before the turn.
    ALL: the grid is (tokens, streams), otherwise `flat` says which token a row is."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1)
    row = stream.to(tl.int64) * tokens + token
    if not ALL:
        row = tl.program_id(0).to(tl.int64)
        token = tl.load(flat + row).to(tl.int32) % tokens
    head, at = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_HALF)
    inside = (head < HEADS)[:, None] & (at < HALF)[None, :]
    cols = head[:, None] * (2 * HALF) + at[None, :]
    one = tl.load(rows + row * stride + cols, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(rows + row * stride + cols + HALF, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + token * HALF + at, mask=at < HALF, other=0.0)[None, :]
    s = tl.load(sin + token * HALF + at, mask=at < HALF, other=0.0)[None, :]
    if COMPARE:
        address = tl.load(addresses + stream - whole, mask=stream >= whole, other=0)
        start = address.to(tl.pointer_type(rows.dtype.element_ty))
        # Rows are whole 16-byte pieces, which the compiler cannot see through an address.
        old = tl.multiple_of(start + (layer * tokens + token).to(tl.int64) * (2 * HALF * HEADS), 16) + cols
        held = (head < HEADS)[:, None] & (at < HALF * (address != 0).to(tl.int32))[None, :]
        old_one = tl.load(old, mask=held, other=0.0).to(tl.float32)
        old_two = tl.load(old + HALF, mask=held, other=0.0).to(tl.float32)
        product = tl.sum(tl.sum(one * old_one + two * old_two, axis=1), axis=0)
        now = tl.sum(tl.sum(one * one + two * two, axis=1), axis=0)
        then = tl.sum(tl.sum(old_one * old_one + old_two * old_two, axis=1), axis=0)
        value = product / tl.maximum(tl.sqrt(now) * tl.sqrt(then), 1e-12)
        tl.store(alike + row - whole * tokens, value, mask=stream >= whole)
    to = turned + row * (2 * HALF * HEADS) + cols
    tl.store(to, (one * c - two * s).to(turned.dtype.element_ty), mask=inside)
    tl.store(to + HALF, (two * c + one * s).to(turned.dtype.element_ty), mask=inside)


@triton.jit
def _value_rows(values, fresh, fresh_there, old, old_there, cols, narrow):
    """Values of a window's tokens: fresh ones, and those of the reference (one of the two is nothing)."""
    now = tl.load(values + fresh[:, None] + cols[None, :], mask=fresh_there[:, None] & narrow, other=0.0)
    return now + tl.load(old[:, None] + cols[None, :], mask=old_there[:, None] & narrow, other=0.0)


@triton.jit(do_not_specialize=["first", "layer"])
def attend_windows(
    queries,
    keys,
    values,
    out,
    members,
    place,
    addresses,
    first,
    tokens,
    layer,
    scale,
    query_stride,
    key_stride,
    value_stride,
    SOME: tl.constexpr,
    EARLY: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    SIZE: tl.constexpr,
    N: tl.constexpr,
):
    """Attention of one head of one window: its N places hold up to SIZE tokens. SOME: only tokens with a row ask, and
    the values of the others are their stream's reference's."""
    behind(EARLY)
    window, head, stream = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.arange(0, N)
    token = tl.load(members + window * SIZE + slot, mask=slot < SIZE, other=-1)
    there = token >= 0
    source = stream * tokens + token
    row, asks = source, there
    fresh = source * value_stride + head * HEAD
    if SOME:
        row = tl.load(place + source, mask=there, other=-1).to(tl.int64)
        asks = row >= 0
        fresh = row * value_stride + head * HEAD
        row -= first
        address = tl.load(addresses + stream)
        start = tl.multiple_of(address.to(tl.pointer_type(values.dtype.element_ty)), 16)
        old = start + (layer * tokens + token).to(tl.int64) * (HEADS * HEAD) + head * HEAD
        # Compared as a row: the interpreter takes no mask that a single number was part of.
        stale = there & (row + first < 0) & (row * 0 + address != 0)
    main, rest = tl.arange(0, MAIN), tl.arange(0, REST)
    narrow = (rest < HEAD - MAIN)[None, :]
    q_at = queries + row[:, None] * query_stride + head * HEAD
    k_at = keys + source[:, None] * key_stride + head * HEAD
    # All reads come before all products: where operands of one took the place of another's in shared memory, ptxas 12.8
    # (of Triton 3.6) addressed them by a register that nothing had written.
    q_main = tl.load(q_at + main[None, :], mask=asks[:, None], other=0.0)
    k_main = tl.load(k_at + main[None, :], mask=there[:, None], other=0.0)
    if SOME:
        v_main = _value_rows(values, fresh, asks, old, stale, main, (main < MAIN)[None, :])
        v_rest = _value_rows(values, fresh, asks, old, stale, MAIN + rest, narrow)
    else:
        v_at = values + fresh[:, None]
        v_main = tl.load(v_at + main[None, :], mask=there[:, None], other=0.0)
        v_rest = tl.load(v_at + MAIN + rest[None, :], mask=there[:, None] & narrow, other=0.0)
    q_rest = tl.load(q_at + MAIN + rest[None, :], mask=asks[:, None] & narrow, other=0.0)
    k_rest = tl.load(k_at + MAIN + rest[None, :], mask=there[:, None] & narrow, other=0.0)
    score = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
    if HEAD > MAIN:
        score = tl.dot(q_rest, tl.trans(k_rest), score, input_precision="ieee")
    score = tl.where(there[None, :], score * scale, -float("inf"))
    weight = tl.exp2(score - tl.expand_dims(tl.max(score, axis=1), 1))
    total = tl.expand_dims(tl.sum(weight, axis=1), 1)
    weight = weight.to(v_main.dtype)
    to = out + row[:, None] * (HEADS * HEAD) + head * HEAD
    answer = tl.dot(weight, v_main, input_precision="ieee") / total
    tl.store(to + main[None, :], answer.to(out.dtype.element_ty), mask=asks[:, None])
    if HEAD > MAIN:
        answer = tl.dot(weight, v_rest, input_precision="ieee") / total
        tl.store(to + MAIN + rest[None, :], answer.to(out.dtype.element_ty), mask=asks[:, None] & narrow)


@triton.jit
def gate(rows, gated, width, EARLY: tl.constexpr, BLOCK: tl.constexpr):
    """SiLU of the first half of a row times the second half."""
    behind(EARLY)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    x = tl.load(rows + row * 2 * width + cols, mask=inside, other=0.0)
    y = tl.load(rows + row * 2 * width + width + cols, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    active = (wide / (1.0 + tl.exp(-wide))).to(x.dtype).to(tl.float32)
    tl.store(gated + row * width + cols, (active * y.to(tl.float32)).to(gated.dtype.element_ty), mask=inside)
