"""Triton kernel of chosen tokens' attention: one head of some queries a program.

Imported only where Triton is there; `head_attention` says in plain PyTorch what it must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._vision_triton import behind


@triton.jit
def _value_rows(values, value_stride, place, old, least, col, there, dim, IN_PLACE: tl.constexpr):
    """Pointers to one head of the values of some tokens, and which of them may be used."""
    if IN_PLACE:
        at = tl.load(place + col, mask=there, other=0)
        v_at = tl.where(at >= 0, values + at * value_stride, old + col * dim)
        # Rows are whole 16-byte pieces, and so are heads: the compiler cannot see that through a choice of addresses.
        v_at, there = tl.multiple_of(v_at, 16), there & (at >= least)
    else:
        v_at = values + col * value_stride
    return v_at, there


@triton.jit(do_not_specialize=["layer", "num_queries"], do_not_specialize_on_alignment=["place", "addresses"])
def attend(
    queries,
    keys,
    values,
    out,
    place,
    addresses,
    layer,
    num_queries,
    tokens,
    dim,
    scale,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    EARLY: tl.constexpr,
    IN_PLACE: tl.constexpr,
    HEAD: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Attention of one head of one stream for M queries; a head of 72 is 64 + 8 columns, not one padded to 128.

    IN_PLACE: `values` are the fresh ones, `place` says of every token which row it has among them, below 0 that its
    value is in its stream's reference."""
    behind(EARLY)
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    main, rest = tl.arange(0, MAIN)[None, :], tl.arange(0, REST)[None, :]
    inside, narrow = (row < num_queries)[:, None], rest < HEAD - MAIN
    at = queries + (stream * num_queries + row)[:, None] * query_stride + head * HEAD
    q_main = tl.load(at + main, mask=inside, other=0.0)
    q_rest = tl.load(at + MAIN + rest, mask=inside & narrow, other=0.0)
    top = tl.full((M,), -float("inf"), tl.float32)
    total = tl.full((M,), 0.0, tl.float32)
    sum_main = tl.full((M, MAIN), 0.0, tl.float32)
    sum_rest = tl.full((M, REST), 0.0, tl.float32)
    # Of what follows only these starts are 64 bits wide: the loop has no registers to spare.
    keys += stream * tokens * key_stride + head * HEAD
    old, least = values, 0
    if IN_PLACE:
        address = tl.load(addresses + stream)
        least = 0 - (address != 0).to(tl.int32)  # no stream: stale tokens have no value
        old = address.to(tl.pointer_type(values.dtype.element_ty)) + tl.cast(layer, tl.int64) * tokens * dim
        old += head * HEAD
        values += head * HEAD
        place += stream * tokens
    else:
        values += stream * tokens * value_stride + head * HEAD
    # One loop with masks, also for whole tiles: behind a loop, ptxas 12.8 lost where the narrow tile of values lies.
    for first in range(0, tokens, N):
        col = first + tl.arange(0, N)
        there = (col < tokens)[:, None]
        v_at, v_there = _value_rows(values, value_stride, place, old, least, col, col < tokens, dim, IN_PLACE)
        k_at = (keys + col * key_stride)[:, None]
        k_main = tl.load(k_at + main, mask=there, other=0.0)
        score = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if HEAD > MAIN:
            k_rest = tl.load(k_at + MAIN + rest, mask=there & narrow, other=0.0)
            score = tl.dot(q_rest, tl.trans(k_rest), score, input_precision="ieee")
        score = tl.where(tl.trans(there), score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1) * scale)
        weight = tl.exp2(score * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        v_main = tl.load(v_at[:, None] + main, mask=v_there[:, None], other=0.0)
        weight = weight.to(v_main.dtype)
        sum_main = tl.dot(weight, v_main, sum_main * shrink[:, None], input_precision="ieee")
        if HEAD > MAIN:
            v_rest = tl.load(v_at[:, None] + MAIN + rest, mask=v_there[:, None] & narrow, other=0.0)
            sum_rest = tl.dot(weight, v_rest, sum_rest * shrink[:, None], input_precision="ieee")
        top = higher
    to = out + (stream * num_queries + row)[:, None] * out_stride + head * HEAD
    tl.store(to + main, (sum_main / total[:, None]).to(out.dtype.element_ty), mask=inside)
    if HEAD > MAIN:
        tl.store(to + MAIN + rest, (sum_rest / total[:, None]).to(out.dtype.element_ty), mask=inside & narrow)
