"""Triton kernels of packed vision steps: rows, norms, references by address, cosine and choice. One program a row.

Imported only where Triton is there; `rows` and `selection` say in plain PyTorch what each must equal.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def behind(EARLY: tl.constexpr):
    """Nothing before this may touch memory. EARLY: the program was started before the kernel in front of it had ended,
    waits for that here, and lets the next kernel start as early."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _stored_row(addresses, stream, tokens, token, layer, dim, like, cols):
    """Pointers to columns of one row of a stream's stored tensor, and how many there are: for no stream, none."""
    address = tl.load(addresses + stream)
    start = address.to(tl.pointer_type(like.dtype.element_ty)) + (layer * tokens + token).to(tl.int64) * dim
    # Rows are whole 16-byte pieces; the compiler cannot see that through an address and would load two bytes at a time.
    return tl.multiple_of(start, 16) + cols, dim * (address != 0).to(tl.int32)


@triton.jit
def _token_and_row(tokens):
    """Stream, token and row of a program in a grid of (tokens, streams): nobody divides by the number of tokens."""
    token, stream = tl.program_id(0), tl.program_id(1)
    return stream, token, stream.to(tl.int64) * tokens + token


@triton.jit
def gather(tokens, flat, rows, dim, EARLY: tl.constexpr, BLOCK: tl.constexpr):
    behind(EARLY)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    source = tl.load(flat + row).to(tl.int64)
    tl.store(rows + row * dim + cols, tl.load(tokens + source * dim + cols, mask=inside), mask=inside)


@triton.jit
def _store_norm(total, weight, bias, normed, row, dim, eps, cols, inside, RMS: tl.constexpr):
    w = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)  # before any sum is waited for
    if RMS:
        scale = 1.0 / tl.sqrt(tl.sum(tl.where(inside, total * total, 0.0), axis=0) / dim + eps)
        result = (total * scale).to(normed.dtype.element_ty).to(tl.float32) * w
    else:
        mean = tl.sum(tl.where(inside, total, 0.0), axis=0) / dim
        centred = tl.where(inside, total - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / dim + eps)
        result = centred * scale * w + b
    tl.store(normed + row * dim + cols, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def residual_norm(
    tokens, branch, weight, bias, total, normed, dim, eps, RMS: tl.constexpr, EARLY: tl.constexpr, BLOCK: tl.constexpr
):
    behind(EARLY)
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
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    behind(EARLY)
    stream, token, row = _token_and_row(tokens)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    x = tl.load(hidden + row * dim + cols, mask=inside, other=0.0)
    trail, held = _stored_row(addresses, stream, tokens, token, 0, dim, hidden, cols)
    if row < first:
        tl.store(trail, x, mask=cols < held)
    else:
        apart = x.to(tl.float32) - tl.load(trail, mask=cols < held, other=0.0).to(tl.float32)
        tl.store(deviation + (row - first) * dim + cols, apart.to(hidden.dtype.element_ty), mask=inside)
    _store_norm(x.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside, RMS)


@triton.jit
def _hidden_row(deviation, addresses, stream, token, row, first, tokens, layer, dim, cols):
    """The hidden state of one token before a layer, in its own format."""
    trail, held = _stored_row(addresses, stream, tokens, token, layer, dim, deviation, cols)
    x = tl.load(trail, mask=cols < held, other=0.0).to(tl.float32)
    apart = dim * (row >= first).to(tl.int32)
    x += tl.load(deviation + (row - first) * dim + cols, mask=cols < apart, other=0.0).to(tl.float32)
    return x.to(deviation.dtype.element_ty)


@triton.jit(do_not_specialize=["first", "layer"])
def everywhere(deviation, addresses, hidden, first, tokens, layer, dim, EARLY: tl.constexpr, BLOCK: tl.constexpr):
    behind(EARLY)
    stream, token, row = _token_and_row(tokens)
    cols = tl.arange(0, BLOCK)
    x = _hidden_row(deviation, addresses, stream, token, row, first, tokens, layer, dim, cols)
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
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    behind(EARLY)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    more = tl.load(branch + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    source = row.to(tl.int32)
    if row >= first:
        source = tl.load(flat + row).to(tl.int32)
    stream, token = source // tokens, source % tokens
    x = _hidden_row(deviation, addresses, stream, token, source.to(tl.int64), first, tokens, layer, dim, cols)
    x = x.to(tl.float32)
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
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token: a computed one is written to the trail or the deviation behind the layer, a stale one is where it was.
    `layer` counts behind: it is the number of the next one."""
    behind(EARLY)
    stream, token, row = _token_and_row(tokens)
    cols = tl.arange(0, BLOCK)
    inside, partly = cols < dim, (row >= first).to(tl.int32)
    trail, held = _stored_row(addresses, stream, tokens, token, layer, dim, deviation, cols)
    own = deviation + (row - first) * dim + cols
    old = tl.load(trail, mask=cols < held * partly, other=0.0).to(tl.float32)  # asked for before `place` has arrived
    at = row
    if row >= first:
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
def fill(fresh, fresh_stride, place, addresses, filled, tokens, layer, dim, EARLY: tl.constexpr, BLOCK: tl.constexpr):
    behind(EARLY)
    stream, token, row = _token_and_row(tokens)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    at = tl.load(place + row).to(tl.int64)
    if at >= 0:
        x = tl.load(fresh + at * fresh_stride + cols, mask=inside, other=0.0)
    else:
        old, held = _stored_row(addresses, stream, tokens, token, layer, dim, fresh, cols)
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
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    behind(EARLY)
    stream, token, row = _token_and_row(tokens)
    cols = tl.arange(0, BLOCK)
    x = tl.load(rows + row * stride + cols, mask=cols < dim, other=0.0)
    to, held = _stored_row(addresses, stream, tokens, token, layer, dim, rows, cols)
    if BOTH:
        y = tl.load(more + row * more_stride + cols, mask=cols < dim, other=0.0)
        and_to, and_held = _stored_row(more_addresses, stream, tokens, token, layer, dim, rows, cols)
        tl.store(and_to, y, mask=cols < and_held)
    tl.store(to, x, mask=cols < held)


@triton.jit(do_not_specialize=["layer"])
def cosine(features, addresses, alike, tokens, layer, dim, EARLY: tl.constexpr, BLOCK: tl.constexpr):
    behind(EARLY)
    stream, token, row = _token_and_row(tokens)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    now = tl.load(features + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    stored, held = _stored_row(addresses, stream, tokens, token, layer, dim, features, cols)
    old = tl.load(stored, mask=cols < held, other=0.0).to(tl.float32)
    norms = tl.sqrt(tl.sum(now * now, axis=0)) * tl.sqrt(tl.sum(old * old, axis=0))
    tl.store(alike + row, tl.sum(now * old, axis=0) / tl.maximum(norms, 1e-12))


@triton.jit
def _in_steps(alike, stream, groups, group, STEPS: tl.constexpr, GROUP: tl.constexpr):
    """The means of some groups' scores in steps, as integers; the last of all for groups that are not there. Summed one
    after the other, so that programs of other shapes get the same bits: else two groups could share a rank."""
    there = group < groups
    scores = alike + (stream * groups + group) * GROUP
    total = tl.load(scores, mask=there, other=0.0)
    for member in tl.static_range(1, GROUP):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(scores + member, mask=there, other=0.0)
    return tl.where(there, tl.floor(total / GROUP * STEPS + 0.5).to(tl.int32), 0x7FFFFFFF)


@triton.jit(do_not_specialize=["first", "count"])
def choose(
    alike,
    flat,
    place,
    index,
    times,
    first,
    groups,
    count,
    source,
    picked,
    dim,
    EARLY: tl.constexpr,
    STEPS: tl.constexpr,
    ALL: tl.constexpr,
    PICK: tl.constexpr,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
    COLS: tl.constexpr,
):
    """Of `groups` groups of neighbours the `count` whose scores have the least mean; GROUP 1: single tokens. A program
    counts for PART groups how many of all come before each of them, BLOCK at a time: that is its rank. Groups that did
    not change have a row if there is room, but no place says so (ALL: there is room for all, and all have a place).
    PICK: it also copies the chosen tokens' rows of `source` to where they belong among those that are computed."""
    behind(EARLY)
    stream = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * PART + tl.arange(0, PART)
    mine = _in_steps(alike, stream, groups, own, STEPS, GROUP)
    before = tl.full((PART, BLOCK), 0, tl.int32)
    for start in range(0, groups, BLOCK):
        other = start + tl.arange(0, BLOCK)
        theirs = _in_steps(alike, stream, groups, other, STEPS, GROUP)[None, :]
        tied = (theirs == mine[:, None]) & (other[None, :] < own[:, None])
        before += ((theirs < mine[:, None]) | tied).to(tl.int32)
    rank = tl.sum(before, axis=1)
    token = stream * groups * GROUP + own[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    there = (own < groups)[:, None]
    has_row = (rank < count)[:, None] & there
    taken = has_row & ((mine < STEPS) | ALL)[:, None]
    row = ((stream * count + rank) * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    seen = tl.load(times + token, mask=taken, other=0.0)
    tl.store(times + token, seen + 1.0, mask=taken)
    tl.store(place + first + token, tl.where(taken, first + row, -1).to(tl.int32), mask=there)
    tl.store(flat + first + row, first + token, mask=has_row)
    tl.store(index + row, token - stream * groups * GROUP, mask=has_row)
    if PICK:
        for place_in_group in tl.static_range(GROUP):  # pyright: ignore[reportGeneralTypeIssues]
            of = source + (first + (stream * groups + own) * GROUP + place_in_group)[:, None] * dim
            to = picked + (first + (stream * count + rank) * GROUP + place_in_group)[:, None] * dim
            wanted = ((rank < count) & (own < groups))[:, None]
            for start in range(0, dim, COLS):
                cols = start + tl.arange(0, COLS)[None, :]
                some = wanted & (cols < dim)
                tl.store(to + cols, tl.load(of + cols, mask=some), mask=some)
