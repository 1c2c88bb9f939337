"""Triton kernels of the corrected Cacher's attention: columns are taken out of a softmax and others put in.

Imported only where Triton is there; `corrected` launches them, and the plain form of `stc_corrected` says what they
must equal. References in 8 and 4 bits are read and written where each stream keeps them.
"""

# Types and numbers are constants where a kernel calls another, and sums are no tuples.
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from onlooker.kernels._parts_triton import (
    ROUND,
    in_4,
    in_8,
    load_packed,
    load_pairs,
    load_row,
    store_packed,
    store_row,
    unpacked_to,
)
from onlooker.kernels._vision_triton import behind

LOG2E = tl.constexpr(1.4426950408889634)
OCTAVE, ONE = tl.constexpr(8.0), tl.constexpr(192.0)
"""Scales of what was attended to: see `stc_corrected._state.octaves`."""


@triton.jit
def bytes_at(table, stream, of_what: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a stream's tensor begins; 0: there is no stream."""
    address = tl.load(table + stream)
    return tl.multiple_of(address.to(tl.pointer_type(of_what)), ALIGNED)


@triton.jit
def coded_row(wide):
    """A row in 8 bits, int8, and its scale, float32."""
    scale = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-8) / 127.0
    return ((wide / scale + ROUND) - ROUND).to(tl.int8), scale


@triton.jit
def _swap(
    fresh, old_to, new_to, codes, scale, dim, NARROW: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """One row of a kind: as it was kept goes to `old_to`, the fresh one is kept, and as it is kept goes to `new_to`."""
    main, rest = load_row(fresh, dim, MAIN, REST)
    main, rest = main.to(tl.float32), rest.to(tl.float32)
    before = tl.load(scale).to(tl.float32)
    if NARROW:
        main_old, rest_old = load_packed(codes, dim, MAIN, REST)
        main, rest, now = in_4(main, rest)
        store_packed(codes, main, rest, dim, MAIN, REST)
    else:
        main_old, rest_old = load_row(codes, dim, MAIN, REST)
        main, rest, now = in_8(main, rest)
        store_row(codes, main, rest, dim, MAIN, REST)
    now = now.to(tl.float16)
    tl.store(scale, now)
    store_row(old_to, main_old.to(tl.float32) * before, rest_old.to(tl.float32) * before, dim, MAIN, REST)
    store_row(new_to, main * now.to(tl.float32), rest * now.to(tl.float32), dim, MAIN, REST)


@triton.jit(do_not_specialize=["layer"])
def swap_rows(
    fresh, flat, counts, columns, queries, keys, values, scales, tokens, layer, layers, dim, room, count, plane,
    Q: tl.constexpr, K: tl.constexpr, V: tl.constexpr, EARLY: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Rows that look, `[streams * room, 3 * dim]`: their queries are kept; of those that changed, which come first,
    keys and values too. These are written to `columns` (`[old or new, key or value, streams * count, dim]`) as they
    were kept and as they are kept now. A program does one of the three. Q, K and V are places of scales among kinds."""
    behind(EARLY)
    slot, stream, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if slot >= tl.load(counts + stream * 4 + (part == 0).to(tl.int32)):
        return
    row = stream * room + slot
    token = (tl.load(flat + row) - stream * tokens).to(tl.int32)
    source = (layer * tokens + token).to(tl.int64)
    fresh += row * 3 * dim
    scale = bytes_at(scales, stream, tl.float16, 2) + layer * tokens + token
    each = layers * tokens
    to = columns + (stream * count + slot) * dim
    if part == 0:
        main, rest = load_row(fresh, dim, MAIN, REST)
        main, rest, now = in_4(main.to(tl.float32), rest.to(tl.float32))
        store_packed(bytes_at(queries, stream, tl.uint8, 4) + source * (dim // 2), main, rest, dim, MAIN, REST)
        tl.store(scale + Q * each, now.to(tl.float16))
    elif part == 1:
        codes = bytes_at(keys, stream, tl.uint8, 4) + source * (dim // 2)
        _swap(fresh + 2 * dim, to, to + 2 * plane, codes, scale + K * each, dim, True, MAIN, REST)
    else:
        numbers = bytes_at(values, stream, tl.int8, 8) + source * dim
        _swap(fresh + dim, to + plane, to + 3 * plane, numbers, scale + V * each, dim, False, MAIN, REST)


@triton.jit
def _tell(
    main_part, rest_part, main, rest, out, at, codes, scale_at, there, HEAD: tl.constexpr, MAIN: tl.constexpr
):  # fmt: skip
    """Write one head of some rows to `out`, and keep it in 8 bits with a scale in one byte."""
    kind = out.dtype.element_ty
    tl.store(out + main, main_part.to(kind), mask=there[:, None] & (main < HEAD))
    if HEAD > MAIN:
        tl.store(out + MAIN + rest, rest_part.to(kind), mask=there[:, None] & (rest < HEAD - MAIN))
    main_part, rest_part = main_part.to(kind).to(tl.float32), rest_part.to(kind).to(tl.float32)
    most = tl.max(tl.abs(main_part), axis=1)
    if HEAD > MAIN:
        most = tl.maximum(most, tl.max(tl.abs(rest_part), axis=1))
    steps = tl.ceil(tl.log2(tl.maximum(most, 1e-30) / 127.0) * OCTAVE) + ONE
    steps = tl.minimum(tl.maximum(steps, 0.0), 255.0)
    scale = tl.exp2((steps - ONE) / OCTAVE)[:, None]
    to = codes + at[:, None]
    tl.store(to + main, ((main_part / scale + ROUND) - ROUND).to(tl.int8), mask=there[:, None] & (main < HEAD))
    if HEAD > MAIN:
        narrow = there[:, None] & (rest < HEAD - MAIN)
        tl.store(to + MAIN + rest, ((rest_part / scale + ROUND) - ROUND).to(tl.int8), mask=narrow)
    tl.store(scale_at, steps.to(tl.uint8), mask=there)


@triton.jit
def _head_in_4(at, there, kind: tl.constexpr, HEAD: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """One head of some rows that are kept in 4 bits, without their scales: the first columns, and the rest."""
    half, rest_half = tl.arange(0, MAIN // 2)[None, :], tl.arange(0, REST // 2)[None, :]
    main = unpacked_to(load_pairs(at + half, there & (half < HEAD // 2)), kind)
    narrow = there & (rest_half < (HEAD - MAIN) // 2)
    return main, unpacked_to(load_pairs(at + MAIN // 2 + rest_half, narrow), kind)


@triton.jit
def _exchanged(
    q_main, q_rest, q_scale, before, sum_main, sum_rest, columns, first, changed, plane, dim, main, rest,
    kind: tl.constexpr, HEAD: tl.constexpr, MAIN: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Columns out of sums as they were, and in as they are: both sums, and the share of each softmax that went and
    came, by what it was before."""
    was, now = before * 0.0, before * 0.0
    each = tl.cdiv(changed, N)
    for turn in range(2 * each):
        new = turn // each
        col = (turn - new * each) * N + tl.arange(0, N)
        seen = (col < changed)[:, None]
        k_at = columns + new * 2 * plane + ((first + col) * dim)[:, None]
        k_main = tl.load(k_at + main, mask=seen & (main < HEAD), other=0.0)
        score = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if HEAD > MAIN:
            k_rest = tl.load(k_at + MAIN + rest, mask=seen & (rest < HEAD - MAIN), other=0.0)
            score = tl.dot(q_rest, tl.trans(k_rest), score, input_precision="ieee")
        weight = tl.exp2(tl.minimum(score * q_scale[:, None] - before[:, None], 30.0 * LOG2E))
        weight = tl.where(tl.trans(seen), weight, 0.0)
        mass = tl.sum(weight, axis=1)
        was += mass * (1 - new)
        now += mass * new
        signed = (weight * (2 * new - 1)).to(kind)
        v_main = tl.load(k_at + plane + main, mask=seen & (main < HEAD), other=0.0)
        sum_main = tl.dot(signed, v_main, sum_main, input_precision="ieee")
        if HEAD > MAIN:
            v_rest = tl.load(k_at + plane + MAIN + rest, mask=seen & (rest < HEAD - MAIN), other=0.0)
            sum_rest = tl.dot(signed, v_rest, sum_rest, input_precision="ieee")
    return sum_main, sum_rest, was, now


@triton.jit
def _everything(
    q_main, q_rest, q_scale, keys, values, key_scales, value_scales, tokens, dim, kind: tl.constexpr,
    HEAD: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Attention to all tokens: both sums before their division, the divisor, and the highest score."""
    main, rest = tl.arange(0, MAIN)[None, :], tl.arange(0, REST)[None, :]
    top = tl.full((M,), -1e30, tl.float32)
    mass = tl.full((M,), 0.0, tl.float32)
    all_main, all_rest = tl.full((M, MAIN), 0.0, tl.float32), tl.full((M, REST), 0.0, tl.float32)
    for start in range(0, tokens, N):
        col = start + tl.arange(0, N)
        seen = (col < tokens)[:, None]
        k_scale = tl.load(key_scales + col, mask=col < tokens, other=0.0).to(tl.float32)
        v_scale = tl.load(value_scales + col, mask=col < tokens, other=0.0).to(tl.float32)
        k_at = keys + (col * (dim // 2))[:, None]
        k_main, k_rest = _head_in_4(k_at, seen, kind, HEAD, MAIN, REST)
        score = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if HEAD > MAIN:
            score = tl.dot(q_rest, tl.trans(k_rest), score, input_precision="ieee")
        score = score * q_scale[:, None] * k_scale[None, :]
        score = tl.where(tl.trans(seen), score, -1e30)
        higher = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        mass = mass * shrink + tl.sum(weight, axis=1)
        weight = (weight * v_scale[None, :]).to(kind)
        v_at = values + (col * dim)[:, None]
        v_main = tl.load(v_at + main, mask=seen & (main < HEAD), other=0).to(kind)
        all_main = tl.dot(weight, v_main, all_main * shrink[:, None], input_precision="ieee")
        if HEAD > MAIN:
            v_rest = tl.load(v_at + MAIN + rest, mask=seen & (rest < HEAD - MAIN), other=0).to(kind)
            all_rest = tl.dot(weight, v_rest, all_rest * shrink[:, None], input_precision="ieee")
        top = higher
    return all_main, all_rest, mass, top


@triton.jit
def _asked(
    queries, scale_of, stream, token, layer, tokens, dim, head, there, kind: tl.constexpr,
    HEAD: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Kept queries of one head of some tokens: both parts, without their scales, and these."""
    at = bytes_at(queries, stream, tl.uint8, 4) + head * (HEAD // 2)
    at += ((layer * tokens + token).to(tl.int64) * (dim // 2))[:, None]
    main, rest = _head_in_4(at, there[:, None], kind, HEAD, MAIN, REST)
    return main, rest, tl.load(scale_of + token, mask=there, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["layer"])
def exchange(
    others, counts, columns, out, queries, attended, attended_scales, sums, scales, lost,
    tokens, layer, layers, dim, count, plane, heads, scale, least,
    Q: tl.constexpr, EARLY: tl.constexpr, HEAD: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One head of M rows of one stream that keep what they attended to: columns as they were are taken out of it and
    put in as they are. The result is kept and written to `out`; of rows of whose softmax less than `least` is left,
    `lost` (`[streams, heads, tokens]`, in the order of `others`) says so."""
    behind(EARLY)
    tile, head, stream = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    changed = tl.load(counts + stream * 4)
    limit = tl.load(counts + stream * 4 + 2)
    if tile * M >= limit:
        return
    slot = tile * M + tl.arange(0, M)
    there = slot < limit
    main, rest = tl.arange(0, MAIN)[None, :], tl.arange(0, REST)[None, :]
    kind: tl.constexpr = out.dtype.element_ty
    token = tl.load(others + stream * tokens + slot, mask=there, other=0)
    scale_of = bytes_at(scales, stream, tl.float16, 2) + (Q * layers + layer) * tokens
    q_main, q_rest, q_scale = _asked(
        queries, scale_of, stream, token, layer, tokens, dim, head, there, kind, HEAD, MAIN, REST
    )  # fmt: skip
    row = (layer * tokens + token).to(tl.int64)
    sum_at = bytes_at(sums, stream, tl.float16, 2) + row * heads + head
    before = tl.load(sum_at, mask=there, other=0.0).to(tl.float32) * LOG2E
    kept_at = bytes_at(attended, stream, tl.int8, 8)
    kept_scale = bytes_at(attended_scales, stream, tl.uint8, 1) + row * heads + head
    kept = tl.exp2((tl.load(kept_scale, mask=there, other=0).to(tl.float32) - ONE) / OCTAVE)[:, None]
    at = row * dim + head * HEAD
    held = there[:, None] & (main < HEAD)
    sum_main = tl.load(kept_at + at[:, None] + main, mask=held, other=0).to(tl.float32) * kept
    held = there[:, None] & (rest < HEAD - MAIN)
    sum_rest = tl.load(kept_at + at[:, None] + MAIN + rest, mask=held, other=0).to(tl.float32) * kept
    sum_main, sum_rest, was, now = _exchanged(
        q_main, q_rest, q_scale * (scale * LOG2E), before, sum_main, sum_rest, columns + head * HEAD, stream * count,
        changed, plane, dim, main, rest, kind, HEAD, MAIN, N,
    )  # fmt: skip
    left = tl.maximum(1.0 - was, 0.0)
    total = left + now
    gone = (total < least) | (left < least)
    tl.store(lost + (stream * heads + head) * tokens + slot, gone.to(tl.int8), mask=there)
    total = tl.maximum(total, 0.5 * least)
    to = out + ((stream * tokens + token) * dim)[:, None] + head * HEAD
    sum_main, sum_rest = sum_main / total[:, None], sum_rest / total[:, None]
    _tell(sum_main, sum_rest, main, rest, to, at, kept_at, kept_scale, there, HEAD, MAIN)
    tl.store(sum_at, ((before + tl.log2(total)) / LOG2E).to(tl.float16), mask=there)


@triton.jit(do_not_specialize=["layer"])
def fill_kept(
    keys, values, scales, counts, filled, tokens, layer, layers, dim, plane,
    K: tl.constexpr, V: tl.constexpr, EARLY: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Kept keys and values of a layer as numbers, `[key or value, streams * tokens, dim]`, of streams in which anything
    changed. A program does one of the two."""
    behind(EARLY)
    token, stream, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    if tl.load(counts + stream * 4) == 0:
        return
    row = (layer * tokens + token).to(tl.int64)
    scale = bytes_at(scales, stream, tl.float16, 2) + layer * tokens + token
    to = filled + part * plane + (stream * tokens + token) * dim
    if part == 0:
        main, rest = load_packed(bytes_at(keys, stream, tl.uint8, 16) + row * (dim // 2), dim, MAIN, REST)
        wide = tl.load(scale + K * layers * tokens).to(tl.float32)
    else:
        main, rest = load_row(bytes_at(values, stream, tl.int8, 16) + row * dim, dim, MAIN, REST)
        wide = tl.load(scale + V * layers * tokens).to(tl.float32)
    store_row(to, main.to(tl.float32) * wide, rest.to(tl.float32) * wide, dim, MAIN, REST)


@triton.jit(do_not_specialize=["layer"])
def keep_seen(
    seen, logs, flat, counts, out, attended, attended_scales, sums, tokens, layer, dim, room, heads,
    HEAD: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row that looked (`seen`, `[streams * room, dim]`, `logs`, `[streams, heads, room]`) is kept, and written to
    its place among all tokens."""
    behind(EARLY)
    slot, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if slot >= tl.load(counts + stream * 4 + 1):
        return
    source = tl.load(flat + stream * room + slot)
    row = layer * tokens + source - stream * tokens
    head, channel = tl.arange(0, HEADS), tl.arange(0, WIDE)[None, :]
    there = head < heads
    held = there[:, None] & (channel < HEAD)
    at = head[:, None] * HEAD + channel
    value = tl.load(seen + (stream * room + slot) * dim + at, mask=held, other=0.0)
    tl.store(out + source * dim + at, value, mask=held)
    value = value.to(tl.float32)
    steps = tl.ceil(tl.log2(tl.maximum(tl.max(tl.abs(value), axis=1), 1e-30) / 127.0) * OCTAVE) + ONE
    steps = tl.minimum(tl.maximum(steps, 0.0), 255.0)
    code = (value / tl.exp2((steps - ONE) / OCTAVE)[:, None] + ROUND) - ROUND
    tl.store(bytes_at(attended, stream, tl.int8, 8) + row * dim + at, code.to(tl.int8), mask=held)
    tl.store(bytes_at(attended_scales, stream, tl.uint8, 1) + row * heads + head, steps.to(tl.uint8), mask=there)
    log = tl.load(logs + (stream * heads + head) * room + slot, mask=there, other=0.0)
    tl.store(bytes_at(sums, stream, tl.float16, 2) + row * heads + head, log.to(tl.float16), mask=there)


@triton.jit(do_not_specialize=["layer"])
def look(
    others, counts, out, queries, keys, values, attended, attended_scales, sums, scales, lost, times,
    tokens, layer, layers, dim, heads, scale, plane,
    Q: tl.constexpr, K: tl.constexpr, V: tl.constexpr, EARLY: tl.constexpr,
    HEAD: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Those of M rows of one stream that are `lost` in one head attend to all keys and values again, with the query
    that is kept; kept and written to `out`."""
    behind(EARLY)
    tile, head, stream = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tile * M + tl.arange(0, M)
    there = slot < tl.load(counts + stream * 4 + 2)
    there &= tl.load(lost + (stream * heads + head) * tokens + slot, mask=there, other=0) > 0
    if tl.max(there.to(tl.int32), axis=0) == 0:
        return
    main, rest = tl.arange(0, MAIN)[None, :], tl.arange(0, REST)[None, :]
    kind: tl.constexpr = out.dtype.element_ty
    scale_of = bytes_at(scales, stream, tl.float16, 2) + layer * tokens
    each = layers * tokens
    token = tl.load(others + stream * tokens + slot, mask=there, other=0)
    q_main, q_rest, q_scale = _asked(
        queries, scale_of + Q * each, stream, token, layer, tokens, dim, head, there, kind, HEAD, MAIN, REST
    )  # fmt: skip
    tl.atomic_add(times + plane + stream * tokens + token, 0.5 / heads, mask=there)
    before_it = tl.cast(layer, tl.int64) * tokens
    key_start = bytes_at(keys, stream, tl.uint8, 4) + before_it * (dim // 2) + head * (HEAD // 2)
    value_start = bytes_at(values, stream, tl.int8, 8) + before_it * dim + head * HEAD
    sum_main, sum_rest, mass, top = _everything(
        q_main, q_rest, q_scale * (scale * LOG2E), key_start, value_start, scale_of + K * each, scale_of + V * each,
        tokens, dim, kind, HEAD, MAIN, REST, M, N,
    )  # fmt: skip
    row = (layer * tokens + token).to(tl.int64)
    at = row * dim + head * HEAD
    to = out + ((stream * tokens + token) * dim)[:, None] + head * HEAD
    kept_scale = bytes_at(attended_scales, stream, tl.uint8, 1) + row * heads + head
    sum_main, sum_rest = sum_main / mass[:, None], sum_rest / mass[:, None]
    _tell(sum_main, sum_rest, main, rest, to, at, bytes_at(attended, stream, tl.int8, 8), kept_scale, there, HEAD, MAIN)
    sum_at = bytes_at(sums, stream, tl.float16, 2) + row * heads + head
    tl.store(sum_at, ((top + tl.log2(mass)) / LOG2E).to(tl.float16), mask=there)
