"""Triton kernels of chosen tokens' attention and of linear layers of picked rows: many products a program.

Imported only where Triton is there; `head_attention` and `picked_linear` say in plain PyTorch what each must equal.
"""

import triton
import triton.language as tl


@triton.jit
def _attend_tile(
    q_main,
    q_rest,
    top,
    total,
    sum_main,
    sum_rest,
    k_at,
    v_at,
    there,
    v_there,
    scale,
    ENDS: tl.constexpr,
    HEAD: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
):
    """Scores of some queries with a tile of keys, and what that adds to their answers. ENDS: keys are not all there."""
    main, rest = tl.arange(0, MAIN)[None, :], tl.arange(0, REST)[None, :]
    narrow = rest < HEAD - MAIN
    k_main = tl.load(k_at + main, mask=there, other=0.0)
    score = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
    if HEAD > MAIN:
        k_rest = tl.load(k_at + MAIN + rest, mask=there & narrow, other=0.0)
        score = tl.dot(q_rest, tl.trans(k_rest), score, input_precision="ieee")
    if ENDS:
        score = tl.where(tl.trans(there), score, -float("inf"))
    higher = tl.maximum(top, tl.max(score, axis=1) * scale)
    weight = tl.exp2(score * scale - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weight, axis=1)
    v_main = tl.load(v_at + main, mask=v_there, other=0.0)
    weight = weight.to(v_main.dtype)
    sum_main = tl.dot(weight, v_main, sum_main * shrink[:, None], input_precision="ieee")
    if HEAD > MAIN:
        v_rest = tl.load(v_at + MAIN + rest, mask=v_there & narrow, other=0.0)
        sum_rest = tl.dot(weight, v_rest, sum_rest * shrink[:, None], input_precision="ieee")
    return higher, total, sum_main, sum_rest


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
    full = tokens // N * N
    for first in range(0, full, N):
        col = first + tl.arange(0, N)
        there = tl.full((N,), 1, tl.int1)
        v_at, v_there = _value_rows(values, value_stride, place, old, least, col, there, dim, IN_PLACE)
        top, total, sum_main, sum_rest = _attend_tile(
            q_main,
            q_rest,
            top,
            total,
            sum_main,
            sum_rest,
            (keys + col * key_stride)[:, None],
            v_at[:, None],
            there[:, None],
            v_there[:, None],
            scale,
            tl.constexpr(False),
            HEAD,
            MAIN,
            REST,
        )
    if full < tokens:
        col = full + tl.arange(0, N)
        there = col < tokens
        v_at, v_there = _value_rows(values, value_stride, place, old, least, col, there, dim, IN_PLACE)
        top, total, sum_main, sum_rest = _attend_tile(
            q_main,
            q_rest,
            top,
            total,
            sum_main,
            sum_rest,
            (keys + col * key_stride)[:, None],
            v_at[:, None],
            there[:, None],
            v_there[:, None],
            scale,
            tl.constexpr(True),
            HEAD,
            MAIN,
            REST,
        )
    to = out + (stream * num_queries + row)[:, None] * out_stride + head * HEAD
    tl.store(to + main, (sum_main / total[:, None]).to(out.dtype.element_ty), mask=inside)
    if HEAD > MAIN:
        tl.store(to + MAIN + rest, (sum_rest / total[:, None]).to(out.dtype.element_ty), mask=inside & narrow)


@triton.jit(do_not_specialize=["num_rows"])
def picked_linear(
    tokens,
    flat,
    weight,
    bias,
    out,
    num_rows,
    width,
    dim,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """M rows times N columns of a linear layer; programs that follow one another share columns of the weight."""
    parts = tl.cdiv(num_rows, M)
    row = tl.program_id(0) % parts * M + tl.arange(0, M)
    col = tl.program_id(0) // parts * N + tl.arange(0, N)
    deep = tl.arange(0, K)[None, :]
    inside, there = (row < num_rows)[:, None], (col < width)[:, None]
    source = tl.load(flat + row, mask=row < num_rows, other=0)
    x_at = tokens + source[:, None] * dim + deep
    w_at = weight + col[:, None] * dim + deep
    total = tl.full((M, N), 0.0, tl.float32)
    for start in range(0, dim, K):
        if EVEN:
            x, w = tl.load(x_at, mask=inside, other=0.0), tl.load(w_at, mask=there, other=0.0)
        else:
            x = tl.load(x_at, mask=inside & (deep < dim - start), other=0.0)
            w = tl.load(w_at, mask=there & (deep < dim - start), other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
        x_at += K
        w_at += K
    total += tl.load(bias + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
    to = out + row.to(tl.int64)[:, None] * width + col[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=inside & (col < width)[None, :])
