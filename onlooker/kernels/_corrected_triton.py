"""Triton kernels of the corrected Cacher beside attention and choices: sketches, norms, sums, and what is kept.

Imported only where Triton is there; `corrected` launches them, and the plain form of `stc_corrected` says what they
must equal. References in 8 and 4 bits are read and written where each stream keeps them; address 0 is no stream.
"""

# Types and numbers are constants where a kernel calls another, and sums are no tuples.
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from onlooker.kernels._mend_triton import bytes_at, coded_row
from onlooker.kernels._parts_triton import (
    ROUND,
    in_4,
    in_8,
    load_packed_if,
    load_row,
    load_row_if,
    store_norm,
    store_packed,
    store_row,
)
from onlooker.kernels._vision_triton import behind

SKETCH = tl.constexpr(64)


@triton.jit
def _rounded(sketch):
    """Sketches `[rows, 64]` in 8 bits: codes, their scales as they are kept, and the numbers that these make."""
    scale = tl.maximum(tl.max(tl.abs(sketch), axis=1), 1e-8) / 127.0
    code = (sketch / scale[:, None] + ROUND) - ROUND
    scale = scale.to(tl.float16)
    return code.to(tl.int8), scale, code * scale.to(tl.float32)[:, None]


@triton.jit
def kept_sketches(start, scale, row, place, there):
    """Kept sketches of some tokens, float32; `place` counts scales through kinds and layers."""
    at = start + row[:, None] * SKETCH + tl.arange(0, SKETCH)[None, :]
    code = tl.load(at, mask=there[:, None], other=0).to(tl.float32)
    return code * tl.load(scale + place, mask=there, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _keep_sketches(start, scale, row, place, there, code, scales):
    at = start + row[:, None] * SKETCH + tl.arange(0, SKETCH)[None, :]
    tl.store(at, code, mask=there[:, None])
    tl.store(scale + place, scales, mask=there)


@triton.jit(do_not_specialize=["layer", "next_layer"])
def carry_sketches(
    seen, fresh, stride, counts, place, branches, thens, scales, apart, length, parts, tokens, layer, next_layer,
    layers, factor, plane, B: tl.constexpr, T: tl.constexpr, EARLY: tl.constexpr, BRANCH: tl.constexpr,
    ROWS: tl.constexpr, ALL: tl.constexpr, KEEP: tl.constexpr, EITHER: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Sketches of tokens, brought from before a branch to behind it, and how far they are then from those in `thens`;
    KEEP: they are those from now on. `fresh` (times `factor`) are sketches of the branch as it was computed: of all
    tokens in streams in which anything changed (by ALL in all streams), or with ROWS, of the tokens that have a row in
    `place`. These are kept; the others have those that were. Without BRANCH `fresh` are those of the tokens. Sums of
    sketches go to `parts`, EITHER: those of `thens` behind them, `plane` further on."""
    behind(EARLY)
    stream = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * R + tl.arange(0, R)
    inside = token < tokens
    at = stream * tokens + token
    from_row, taken = at, inside
    if ROWS:
        from_row = tl.load(place + at, mask=inside, other=-1).to(tl.int64)
        taken = inside & (from_row >= 0)
    elif ALL == 0:
        taken = inside & (token * 0 + tl.load(counts + stream * 4) > 0)
    branch_at, then_at = bytes_at(branches, stream, tl.int8, 16), bytes_at(thens, stream, tl.int8, 16)
    scale = bytes_at(scales, stream, tl.float16, 2)
    if tl.load(scales + stream) == 0:
        return
    # All that is read, before anything is waited for.
    channel = tl.arange(0, SKETCH)[None, :]
    own = seen + at[:, None] * SKETCH + channel
    row, held = (layer * tokens + token).to(tl.int64), (B * layers + layer) * tokens + token
    then_row, then_held = (next_layer * tokens + token).to(tl.int64), (T * layers + next_layer) * tokens + token
    new = tl.load(fresh + from_row[:, None] * stride + channel, mask=taken[:, None], other=0.0).to(tl.float32) * factor
    if BRANCH:
        old = kept_sketches(branch_at, scale, row, held, inside & (taken == 0))
        before = tl.load(own, mask=inside[:, None], other=0.0)
    if KEEP == 0:
        then = kept_sketches(then_at, scale, then_row, then_held, inside)
    code, scale_now, sketch = _rounded(new)
    if BRANCH:
        _keep_sketches(branch_at, scale, row, held, taken, code, scale_now)
        sketch = tl.where(taken[:, None], sketch, old) + before
    tl.store(own, sketch, mask=inside[:, None])
    code, scale_now, now = _rounded(sketch)
    if KEEP:
        _keep_sketches(then_at, scale, then_row, then_held, inside, code, scale_now)
    else:
        difference = now - then
        tl.store(apart + at, tl.sqrt(tl.sum(difference * difference, axis=1)), mask=inside)
        tl.store(length + at, tl.sqrt(tl.sum(then * then, axis=1)), mask=inside)
    part = stream * tl.num_programs(0) + tl.program_id(0)
    some = tl.sum(tl.where(inside[:, None], sketch, 0.0), axis=0)
    tl.store(parts + part * SKETCH + tl.arange(0, SKETCH), some)
    if EITHER and KEEP == 0:
        tl.store(parts + plane + part * SKETCH + tl.arange(0, SKETCH), tl.sum(then, axis=0))


@triton.jit(do_not_specialize=["layer"])
def norm_chosen(
    x, branch, stride, attends, flat, counts, seen, codes, thens, scales, weight, bias, normed,
    tokens, layer, layers, dim, room, eps,
    A: tl.constexpr, T: tl.constexpr, MIDDLE: tl.constexpr, SOME: tl.constexpr, RMS: tl.constexpr, EARLY: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The norm of chosen rows, MIDDLE: behind their attention branch, which is fresh in streams in which anything
    changed (SOME: of tokens that have a row in `attends`). The sketches of those that changed are kept in `thens`."""
    behind(EARLY)
    slot, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * room + slot
    source = tl.load(flat + row).to(tl.int64)
    active = tl.load(counts + stream * 4)
    changed = tl.load(counts + stream * 4 + 3 * MIDDLE)
    if slot >= tl.load(counts + stream * 4 + (3 if MIDDLE else 1)):
        return
    token = (source - stream * tokens).to(tl.int32)
    scale = bytes_at(scales, stream, tl.float16, 2)
    at = (layer * tokens + token).to(tl.int64)
    sketch = tl.load(seen + source * SKETCH + tl.arange(0, SKETCH))
    main, rest = load_row(x + source * dim, dim, MAIN, REST)
    main, rest = main.to(tl.float32), rest.to(tl.float32)
    if MIDDLE:
        made, fresh = source, (active > 0).to(tl.int32)
        if SOME:
            made = tl.load(attends + source).to(tl.int64)
            fresh *= (made >= 0).to(tl.int32)
        kept_at = bytes_at(codes, stream, tl.uint8, 16) + at * (dim // 2)
        main_kept, rest_kept = load_packed_if(1 - fresh, kept_at, dim, MAIN, REST)
        held = tl.load(scale + (A * layers + layer) * tokens + token).to(tl.float32)
        main_part, rest_part = load_row_if(fresh, branch + made * stride, dim, MAIN, REST)
        main += tl.where(fresh > 0, main_part.to(tl.float32), main_kept.to(tl.float32) * held)
        rest += tl.where(fresh > 0, rest_part.to(tl.float32), rest_kept.to(tl.float32) * held)
        main, rest = main.to(x.dtype.element_ty).to(tl.float32), rest.to(x.dtype.element_ty).to(tl.float32)
    store_norm(normed + row * dim, main, rest, weight, bias, dim, eps, RMS, MAIN, REST)
    if slot < changed:
        code, now = coded_row(sketch)
        tl.store(bytes_at(thens, stream, tl.int8, 16) + at * SKETCH + tl.arange(0, SKETCH), code)
        tl.store(scale + (T * layers + layer) * tokens + token, now.to(tl.float16))


@triton.jit(do_not_specialize=["layer"])
def finish_corrected(
    x, total, branch, stride, attends, mlp, working, counts, attention_codes, mlp_codes, scales,
    looking, counts_next, seen, thens, weight, bias, normed, tokens, layer, layers, dim, room, eps,
    A: tl.constexpr, P: tl.constexpr, T: tl.constexpr, SOME: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr,
    EARLY: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One token behind both branches of a layer, each fresh, which is then kept, or as it is kept: see `norm_chosen`.
    NORM: what that does before a layer is done here for tokens that look in the next one (`looking`: their rows)."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(scales + stream) == 0:
        return
    source = stream * tokens + token
    worked = tl.load(working + source).to(tl.int64)
    active = (tl.load(counts + stream * 4) > 0).to(tl.int32)
    made = source
    if SOME:
        made = tl.load(attends + source).to(tl.int64)
        active *= (made >= 0).to(tl.int32)
    row = (layer * tokens + token).to(tl.int64)
    attention_at = bytes_at(attention_codes, stream, tl.uint8, 16) + row * (dim // 2)
    mlp_at = bytes_at(mlp_codes, stream, tl.int8, 16) + row * dim
    scale = bytes_at(scales, stream, tl.float16, 2) + layer * tokens + token
    attention_scale, mlp_scale = scale + A * layers * tokens, scale + P * layers * tokens
    works = (worked >= 0).to(tl.int32)
    main, rest = load_row(x + source * dim, dim, MAIN, REST)
    main_branch, rest_branch = load_row_if(active, branch + made * stride, dim, MAIN, REST)
    main_kept, rest_kept = load_packed_if(1 - active, attention_at, dim, MAIN, REST)
    held = tl.load(attention_scale).to(tl.float32)
    main_mlp, rest_mlp = load_row_if(works, mlp + worked * dim, dim, MAIN, REST)
    main_old, rest_old = load_row_if(1 - works, mlp_at, dim, MAIN, REST)
    mlp_held = tl.load(mlp_scale).to(tl.float32)
    main_part = tl.where(active > 0, main_branch.to(tl.float32), main_kept.to(tl.float32) * held)
    rest_part = tl.where(active > 0, rest_branch.to(tl.float32), rest_kept.to(tl.float32) * held)
    main = (main.to(tl.float32) + main_part).to(x.dtype.element_ty).to(tl.float32)
    rest = (rest.to(tl.float32) + rest_part).to(x.dtype.element_ty).to(tl.float32)
    main_more = tl.where(works > 0, main_mlp.to(tl.float32), main_old.to(tl.float32) * mlp_held)
    rest_more = tl.where(works > 0, rest_mlp.to(tl.float32), rest_old.to(tl.float32) * mlp_held)
    main = (main + main_more).to(x.dtype.element_ty).to(tl.float32)
    rest = (rest + rest_more).to(x.dtype.element_ty).to(tl.float32)
    store_row(total + source * dim, main, rest, dim, MAIN, REST)
    if active > 0:
        main_code, rest_code, now = in_4(main_part, rest_part)
        store_packed(attention_at, main_code, rest_code, dim, MAIN, REST)
        tl.store(attention_scale, now.to(tl.float16))
    if works > 0:
        main_code, rest_code, now = in_8(main_more, rest_more)
        store_row(mlp_at, main_code, rest_code, dim, MAIN, REST)
        tl.store(mlp_scale, now.to(tl.float16))
    if NORM:
        looked = tl.load(looking + source).to(tl.int64)
        if looked >= 0:
            store_norm(normed + looked * dim, main, rest, weight, bias, dim, eps, RMS, MAIN, REST)
            if looked - stream * room < tl.load(counts_next + stream * 4):
                code, now = coded_row(tl.load(seen + source * SKETCH + tl.arange(0, SKETCH)))
                then_at = bytes_at(thens, stream, tl.int8, 16) + (row + tokens) * SKETCH
                tl.store(then_at + tl.arange(0, SKETCH), code)
                tl.store(scale + (T * layers + 1) * tokens, now.to(tl.float16))


@triton.jit
def _keep_row(
    rows, table, place, stream, row, dim, NARROW: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """Keep one row, in 4 bits if NARROW, else in 8, and its scale in `place`; the row, float32."""
    main, rest = load_row(rows, dim, MAIN, REST)
    main, rest = main.to(tl.float32), rest.to(tl.float32)
    if NARROW:
        main_code, rest_code, now = in_4(main, rest)
        store_packed(bytes_at(table, stream, tl.uint8, 16) + row * (dim // 2), main_code, rest_code, dim, MAIN, REST)
    else:
        main_code, rest_code, now = in_8(main, rest)
        store_row(bytes_at(table, stream, tl.int8, 16) + row * dim, main_code, rest_code, dim, MAIN, REST)
    tl.store(place, now.to(tl.float16))
    return main, rest


@triton.jit(do_not_specialize=["layer"])
def keep_looked(
    fresh, queries, keys, values, scales, tokens, layer, layers, dim,
    Q: tl.constexpr, K: tl.constexpr, V: tl.constexpr, EARLY: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Query, value and key of one token of a whole frame (`[rows, 3 * dim]`) are kept. A program does one of these."""
    behind(EARLY)
    token, stream, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if tl.load(scales + stream) == 0:
        return
    scale = bytes_at(scales, stream, tl.float16, 2) + layer * tokens + token
    row = (layer * tokens + token).to(tl.int64)
    mine = fresh + (stream * tokens + token) * 3 * dim
    each = layers * tokens
    if part == 0:
        _keep_row(mine, queries, scale + Q * each, stream, row, dim, True, MAIN, REST)
    elif part == 1:
        _keep_row(mine + dim, values, scale + V * each, stream, row, dim, False, MAIN, REST)
    else:
        _keep_row(mine + 2 * dim, keys, scale + K * each, stream, row, dim, True, MAIN, REST)


@triton.jit(do_not_specialize=["layer"])
def keep_branch(
    x, branch, stride, codes, scales, weight, bias, total, normed, tokens, layer, layers, dim, eps,
    B: tl.constexpr, NARROW: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr, EARLY: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One token of a whole frame behind a branch, which is kept, and NORM: its norm."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(scales + stream) == 0:
        return
    source = stream * tokens + token
    main, rest = load_row(x + source * dim, dim, MAIN, REST)
    row = (layer * tokens + token).to(tl.int64)
    place = bytes_at(scales, stream, tl.float16, 2) + (B * layers + layer) * tokens + token
    more = _keep_row(branch + source * stride, codes, place, stream, row, dim, NARROW, MAIN, REST)
    main = (main.to(tl.float32) + more[0]).to(x.dtype.element_ty)
    rest = (rest.to(tl.float32) + more[1]).to(x.dtype.element_ty)
    store_row(total + source * dim, main, rest, dim, MAIN, REST)
    if NORM:
        main, rest = main.to(tl.float32), rest.to(tl.float32)
        store_norm(normed + source * dim, main, rest, weight, bias, dim, eps, RMS, MAIN, REST)
