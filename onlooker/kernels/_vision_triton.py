"""Triton kernels of packed vision steps: rows, norms, references by address, cosine and choice. One program a row.

Imported only where Triton is there; `rows` and `selection` say in plain PyTorch what each must equal.
"""

import triton
import triton.language as tl


@triton.jit
def _stored_row(addresses, stream, tokens, token, layer, dim, like, cols):
    """Pointers to columns of one row of a stream's stored tensor, and how many there are: for no stream, none."""
    address = tl.load(addresses + stream)
    start = address.to(tl.pointer_type(like.dtype.element_ty)) + (layer * tokens + token) * dim
    # Rows are whole 16-byte pieces; the compiler cannot see that through an address and would load two bytes at a time.
    return tl.multiple_of(start, 16) + cols, dim * (address != 0).to(tl.int32)


@triton.jit
def gather(tokens, flat, rows, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    source = tl.load(flat + row).to(tl.int64)
    tl.store(rows + row * dim + cols, tl.load(tokens + source * dim + cols, mask=inside), mask=inside)


@triton.jit
def _store_norm(total, weight, bias, normed, row, dim, eps, cols, inside, RMS: tl.constexpr):
    w = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    if RMS:
        scale = 1.0 / tl.sqrt(tl.sum(tl.where(inside, total * total, 0.0), axis=0) / dim + eps)
        result = (total * scale).to(normed.dtype.element_ty).to(tl.float32) * w
    else:
        mean = tl.sum(tl.where(inside, total, 0.0), axis=0) / dim
        centred = tl.where(inside, total - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / dim + eps)
        b = tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
        result = centred * scale * w + b
    tl.store(normed + row * dim + cols, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def residual_norm(tokens, branch, weight, bias, total, normed, dim, eps, RMS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(tokens + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(branch + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    rounded = x.to(total.dtype.element_ty)
    tl.store(total + row * dim + cols, rounded, mask=inside)
    _store_norm(rounded.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside, RMS)


@triton.jit(do_not_specialize=["first"])
def enter(
    hidden,
    addresses,
    weight,
    bias,
    deviation,
    normed,
    first,
    tokens,
    dim,
    eps,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(hidden + row * dim + cols, mask=inside, other=0.0)
    trail, held = _stored_row(addresses, row // tokens, tokens, row % tokens, 0, dim, hidden, cols)
    if row < first:
        tl.store(trail, x, mask=cols < held)
    else:
        apart = x.to(tl.float32) - tl.load(trail, mask=cols < held, other=0.0).to(tl.float32)
        tl.store(deviation + (row - first) * dim + cols, apart.to(hidden.dtype.element_ty), mask=inside)
    _store_norm(x.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside, RMS)


@triton.jit
def _hidden_row(deviation, addresses, row, first, tokens, layer, dim, cols):
    """The hidden state of one token before a layer, in its own format."""
    trail, held = _stored_row(addresses, row // tokens, tokens, row % tokens, layer, dim, deviation, cols)
    x = tl.load(trail, mask=cols < held, other=0.0).to(tl.float32)
    apart = dim * (row >= first).to(tl.int32)
    x += tl.load(deviation + (row - first) * dim + cols, mask=cols < apart, other=0.0).to(tl.float32)
    return x.to(deviation.dtype.element_ty)


@triton.jit(do_not_specialize=["first", "layer"])
def everywhere(deviation, addresses, hidden, first, tokens, layer, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    x = _hidden_row(deviation, addresses, row, first, tokens, layer, dim, cols)
    tl.store(hidden + row * dim + cols, x, mask=cols < dim)


@triton.jit(do_not_specialize=["first", "layer"])
def add_branch(
    deviation,
    flat,
    branch,
    addresses,
    weight,
    bias,
    total,
    normed,
    first,
    tokens,
    layer,
    dim,
    eps,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    more = tl.load(branch + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    x = _hidden_row(deviation, addresses, tl.load(flat + row), first, tokens, layer, dim, cols).to(tl.float32)
    rounded = (x + more).to(total.dtype.element_ty)
    tl.store(total + row * dim + cols, rounded, mask=inside)
    _store_norm(rounded.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside, RMS)


@triton.jit(do_not_specialize=["first", "layer"])
def advance(
    deviation,
    place,
    middle,
    mlp,
    addresses,
    weight,
    bias,
    normed,
    first,
    tokens,
    layer,
    dim,
    eps,
    NORM: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token: a computed one is written to the trail or the deviation behind the layer, a stale one is where it was.
    `layer` counts behind: it is the number of the next one."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside, partly = cols < dim, (row >= first).to(tl.int32)
    trail, held = _stored_row(addresses, row // tokens, tokens, row % tokens, layer, dim, deviation, cols)
    own = deviation + (row - first) * dim + cols
    old = tl.load(trail, mask=cols < held * partly, other=0.0).to(tl.float32)  # asked for before `place` has arrived
    at = tl.load(place + row).to(tl.int64)
    if at >= 0:
        x = tl.load(middle + at * dim + cols, mask=inside, other=0.0).to(tl.float32)
        x += tl.load(mlp + at * dim + cols, mask=inside, other=0.0).to(tl.float32)
        x = x.to(deviation.dtype.element_ty).to(tl.float32)
        tl.store(trail, x.to(deviation.dtype.element_ty), mask=cols < held * (1 - partly))
        tl.store(own, (x - old).to(deviation.dtype.element_ty), mask=cols < dim * partly)
    else:
        x = old + tl.load(own, mask=inside, other=0.0).to(tl.float32)
        x = x.to(deviation.dtype.element_ty).to(tl.float32)
    if NORM:
        _store_norm(x, weight, bias, normed, row, dim, eps, cols, inside, RMS)


@triton.jit(do_not_specialize=["layer"])
def fill(fresh, fresh_stride, place, addresses, filled, tokens, layer, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    at = tl.load(place + row).to(tl.int64)
    if at >= 0:
        x = tl.load(fresh + at * fresh_stride + cols, mask=inside, other=0.0)
    else:
        old, held = _stored_row(addresses, row // tokens, tokens, row % tokens, layer, dim, fresh, cols)
        x = tl.load(old, mask=cols < held, other=0.0)
    tl.store(filled + row * dim + cols, x, mask=inside)


@triton.jit(do_not_specialize=["layer"])
def keep(
    rows,
    stride,
    addresses,
    more,
    more_stride,
    more_addresses,
    tokens,
    layer,
    dim,
    BOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    stream, token = row // tokens, row % tokens
    x = tl.load(rows + row * stride + cols, mask=cols < dim, other=0.0)
    to, held = _stored_row(addresses, stream, tokens, token, layer, dim, rows, cols)
    if BOTH:
        y = tl.load(more + row * more_stride + cols, mask=cols < dim, other=0.0)
        and_to, and_held = _stored_row(more_addresses, stream, tokens, token, layer, dim, rows, cols)
        tl.store(and_to, y, mask=cols < and_held)
    tl.store(to, x, mask=cols < held)


@triton.jit(do_not_specialize=["layer"])
def cosine(features, addresses, alike, tokens, layer, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    now = tl.load(features + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    stored, held = _stored_row(addresses, row // tokens, tokens, row % tokens, layer, dim, features, cols)
    old = tl.load(stored, mask=cols < held, other=0.0).to(tl.float32)
    norms = tl.sqrt(tl.sum(now * now, axis=0)) * tl.sqrt(tl.sum(old * old, axis=0))
    tl.store(alike + row, tl.sum(now * old, axis=0) / tl.maximum(norms, 1e-12))


@triton.jit(do_not_specialize=["first", "count"])
def choose(alike, flat, place, index, times, first, groups, count, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Of `groups` groups of neighbours the `count` whose scores have the least mean; GROUP 1: single tokens."""
    stream = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BLOCK)
    inside = number < groups
    token = number[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tokens, there = groups * GROUP, inside[:, None]
    scores = tl.load(alike + stream * tokens + token, mask=there, other=0.0)
    seen = tl.load(times + stream * tokens + token, mask=there, other=0.0)
    mean = tl.sum(scores, axis=1) / GROUP
    bits = tl.cast(mean, tl.uint32, bitcast=True)
    # Floats in order as integers from 0: negative ones have all bits turned, the others come above them.
    order = bits ^ tl.where(bits >= 0x80000000, 0xFFFFFFFF, 0x80000000)
    order = tl.where(inside, order, 0xFFFFFFFF)
    # The count-th least of `order`, two bits a turn: one sum counts what lies below each of three bounds.
    least, below = tl.full((), 0, tl.uint32), tl.full((), 0, tl.int64)
    for turn in range(16):
        step = tl.full((), 1, tl.uint32) << (30 - 2 * turn)
        lower = (order < least + step).to(tl.int64) + ((order < least + step * 2).to(tl.int64) << 20)
        counts = tl.cast(tl.sum(lower + ((order < least + step * 3).to(tl.int64) << 40), axis=0), tl.int64)
        one, two, three = counts & 0xFFFFF, (counts >> 20) & 0xFFFFF, counts >> 40
        digit = (one < count).to(tl.uint32) + (two < count).to(tl.uint32) + (three < count).to(tl.uint32)
        below = tl.where(three < count, three, tl.where(two < count, two, tl.where(one < count, one, below)))
        least += digit * step
    tied = (order == least) & inside
    # How many up to here are below, and how many are tied: of those as many are taken, in order, as there is room for.
    passed = tl.cumsum((order < least).to(tl.int64) + (tied.to(tl.int64) << 20), axis=0)
    room = count - below
    tied_passed = passed >> 20
    chosen = (order < least) | (tied & (tied_passed <= room))
    rank = (passed & 0xFFFFF) + tl.minimum(tied_passed, room) - 1
    taken = chosen[:, None] & there
    own = ((stream * count + rank) * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    tl.store(place + first + stream * tokens + token, tl.where(taken, first + own, -1).to(tl.int32), mask=there)
    tl.store(flat + first + own, first + stream * tokens + token, mask=taken)
    tl.store(index + own, token.to(tl.int64), mask=taken)
    tl.store(times + stream * tokens + token, seen + taken.to(tl.float32), mask=there)
