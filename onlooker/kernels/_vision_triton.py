"""Triton kernels of packed vision steps: rows, norms, references by address, cosine and choice. One program a row.

Imported only where Triton is there; `rows` and `selection` say in plain PyTorch what each must equal.
"""

import triton
import triton.language as tl


@triton.jit
def _stored_row(addresses, stream, tokens, token, layer, dim, like, BLOCK: tl.constexpr):
    """Pointers to one row of a stream's stored tensor, and the address of the tensor: 0 for no stream."""
    address = tl.load(addresses + stream)
    start = address.to(tl.pointer_type(like.dtype.element_ty)) + (layer * tokens + token) * dim
    # Rows are whole 16-byte pieces; the compiler cannot see that through an address and would load two bytes at a time.
    return tl.multiple_of(start, 16) + tl.arange(0, BLOCK), address


@triton.jit
def _load_stored(addresses, stream, tokens, token, layer, dim, like, inside, BLOCK: tl.constexpr):
    """One row of a stream's stored tensor; zeros for no stream."""
    at, address = _stored_row(addresses, stream, tokens, token, layer, dim, like, BLOCK)
    row = tl.full((BLOCK,), 0.0, like.dtype.element_ty)
    if address != 0:
        row = tl.load(at, mask=inside, other=0.0)
    return row


@triton.jit
def gather(tokens, flat, rows, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    source = tl.load(flat + row).to(tl.int64)
    tl.store(rows + row * dim + cols, tl.load(tokens + source * dim + cols, mask=inside), mask=inside)


@triton.jit
def _store_norm(total, weight, bias, normed, row, dim, eps, cols, inside):
    mean = tl.sum(tl.where(inside, total, 0.0), axis=0) / dim
    centred = tl.where(inside, total - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / dim + eps)
    w = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * dim + cols, (centred * scale * w + b).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def residual_norm(tokens, flat, branch, weight, bias, total, normed, dim, eps, ALL: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    source = row
    if not ALL:
        source = tl.load(flat + row).to(tl.int64)
    x = tl.load(tokens + source * dim + cols, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(branch + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    rounded = x.to(total.dtype.element_ty)
    tl.store(total + row * dim + cols, rounded, mask=inside)
    _store_norm(rounded.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside)


@triton.jit(do_not_specialize=["layer"])
def advance(
    tokens,
    place,
    middle,
    mlp,
    addresses,
    weight,
    bias,
    output,
    normed,
    per_stream,
    layer,
    dim,
    eps,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    at = tl.load(place + row).to(tl.int64)
    if at >= 0:
        x = tl.load(middle + at * dim + cols, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(mlp + at * dim + cols, mask=inside, other=0.0).to(tl.float32)
    else:
        stream = row // per_stream
        x = tl.load(tokens + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
        x += _load_stored(addresses, stream, per_stream, row % per_stream, layer, dim, tokens, inside, BLOCK)
    rounded = x.to(output.dtype.element_ty)
    tl.store(output + row * dim + cols, rounded, mask=inside)
    if NORM:
        _store_norm(rounded.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside)


@triton.jit(do_not_specialize=["layer"])
def fill(fresh, fresh_stride, place, addresses, filled, per_stream, layer, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    at = tl.load(place + row).to(tl.int64)
    if at >= 0:
        x = tl.load(fresh + at * fresh_stride + cols, mask=inside, other=0.0)
    else:
        stream = row // per_stream
        x = _load_stored(addresses, stream, per_stream, row % per_stream, layer, dim, fresh, inside, BLOCK)
    tl.store(filled + row * dim + cols, x, mask=inside)


@triton.jit(do_not_specialize=["layer"])
def keep(rows, stride, more, addresses, per_stream, layer, dim, SUM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(rows + row * stride + cols, mask=inside, other=0.0)
    if SUM:
        y = tl.load(more + row * dim + cols, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(rows.dtype.element_ty)
    stream = row // per_stream
    at, address = _stored_row(addresses, stream, per_stream, row % per_stream, layer, dim, rows, BLOCK)
    if address != 0:
        tl.store(at, x, mask=inside)


@triton.jit(do_not_specialize=["layer"])
def cosine(features, addresses, alike, tokens, layer, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    now = tl.load(features + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    stored = _load_stored(addresses, row // tokens, tokens, row % tokens, layer, dim, features, inside, BLOCK)
    old = stored.to(tl.float32)
    norms = tl.sqrt(tl.sum(now * now, axis=0)) * tl.sqrt(tl.sum(old * old, axis=0))
    tl.store(alike + row, tl.sum(now * old, axis=0) / tl.maximum(norms, 1e-12))


@triton.jit(do_not_specialize=["first", "count"])
def choose(alike, flat, place, index, times, first, tokens, count, BLOCK: tl.constexpr):
    stream = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < tokens
    bits = tl.load(alike + stream * tokens + token, mask=inside, other=0.0).to(tl.int32, bitcast=True)
    # Floats in order as integers from 0: negative ones have all bits turned, the others come above them.
    order = tl.where(bits < 0, -1 - bits.to(tl.int64), bits.to(tl.int64) + 0x80000000)
    order = tl.where(inside, order, 0x200000000)
    least = tl.full((), 0, tl.int64)  # becomes the count-th least of `order`
    for turn in range(32):
        higher = least + (tl.full((), 1, tl.int64) << (31 - turn))
        below = tl.sum((order < higher).to(tl.int32), axis=0)
        least = tl.where(below < count, higher, least)
    below = tl.sum((order < least).to(tl.int32), axis=0)
    tied = (order == least).to(tl.int32)
    chosen = (order < least) | ((tied == 1) & (below + tl.cumsum(tied, axis=0) <= count))
    rank = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    row = first + stream * count + rank
    tl.store(place + first + stream * tokens + token, tl.where(chosen, row, -1).to(tl.int32), mask=inside)
    tl.store(flat + row, first + stream * tokens + token, mask=chosen)
    tl.store(index + stream * count + rank, token.to(tl.int64), mask=chosen)
    seen = tl.load(times + stream * tokens + token, mask=inside, other=0.0)
    tl.store(times + stream * tokens + token, seen + chosen.to(tl.float32), mask=inside)


@triton.jit
def attend(
    queries,
    keys,
    values,
    out,
    num_queries,
    tokens,
    scale,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    HEAD: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Attention of one head of one stream for M queries; a head of 72 is 64 + 8 columns, not one padded to 128."""
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    main, rest = tl.arange(0, MAIN), tl.arange(0, REST)
    inside, narrow = row < num_queries, rest < HEAD - MAIN
    at = queries + (stream * num_queries + row)[:, None] * query_stride + head * HEAD
    q_main = tl.load(at + main[None, :], mask=inside[:, None], other=0.0)
    q_rest = tl.load(at + MAIN + rest[None, :], mask=inside[:, None] & narrow[None, :], other=0.0)
    top = tl.full((M,), -float("inf"), tl.float32)
    total = tl.full((M,), 0.0, tl.float32)
    sum_main = tl.full((M, MAIN), 0.0, tl.float32)
    sum_rest = tl.full((M, REST), 0.0, tl.float32)
    for first in range(0, tokens, N):
        col = first + tl.arange(0, N)
        there = col < tokens
        k_at = keys + (stream * tokens + col)[:, None] * key_stride + head * HEAD
        v_at = values + (stream * tokens + col)[:, None] * value_stride + head * HEAD
        k_main = tl.load(k_at + main[None, :], mask=there[:, None], other=0.0)
        k_rest = tl.load(k_at + MAIN + rest[None, :], mask=there[:, None] & narrow[None, :], other=0.0)
        score = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        score = tl.dot(q_rest, tl.trans(k_rest), score, input_precision="ieee")
        score = tl.where(there[None, :], score * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        v_main = tl.load(v_at + main[None, :], mask=there[:, None], other=0.0)
        v_rest = tl.load(v_at + MAIN + rest[None, :], mask=there[:, None] & narrow[None, :], other=0.0)
        weight = weight.to(v_main.dtype)
        sum_main = tl.dot(weight, v_main, sum_main * shrink[:, None], input_precision="ieee")
        sum_rest = tl.dot(weight, v_rest, sum_rest * shrink[:, None], input_precision="ieee")
        top = higher
    to = out + (stream * num_queries + row)[:, None] * out_stride + head * HEAD
    tl.store(to + main[None, :], (sum_main / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    rest_rows = inside[:, None] & narrow[None, :]
    tl.store(to + MAIN + rest[None, :], (sum_rest / total[:, None]).to(out.dtype.element_ty), mask=rest_rows)
