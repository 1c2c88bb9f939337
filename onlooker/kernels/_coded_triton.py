"""Triton kernels of vision steps over references in 8 or 4 bits, which are read and written by address.

Imported only where Triton is there; `coded` launches them, and the plain form of STC-Cacher says what they must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._parts_triton import in_8, load_row, store_norm, store_row
from onlooker.kernels._vision_triton import _store_norm, behind

GROUP: tl.constexpr = tl.constexpr(32)
"""Channels that share a scale in 4 bits, as in `stc_cacher._state`."""
HALF: tl.constexpr = tl.constexpr(16)
"""Of a group, the first so many lie in the low bits of its bytes, the others in the high ones."""


@triton.jit
def _codes(address, like, BITS: tl.constexpr):
    """Where a stream's stored rows begin."""
    if BITS == 8:
        start = address.to(tl.pointer_type(tl.int8))
    elif BITS == 4:
        start = address.to(tl.pointer_type(tl.uint8))
    else:
        start = address.to(tl.pointer_type(like.dtype.element_ty))
    return tl.multiple_of(start, 16)


@triton.jit
def _stored(start, scales, stream, row, place, held, dim, cols, there, BITS: tl.constexpr):
    """Numbers of stored rows, float32: of row `row` of a stream's, whose scales are those of `place` (rows counted
    through kinds and layers), the columns `cols`; zero not `there`, of rows that are not `held`."""
    if BITS == 4:
        groups = tl.cdiv(dim, GROUP)
        group = cols // GROUP
        at = row.to(tl.int64) * (groups * HALF) + group * HALF + cols % HALF
        byte = tl.load(start + at, mask=there, other=0).to(tl.int32)
        code = ((byte >> (cols % GROUP // HALF * 4)) & 15) - 8
        scale = tl.load(scales + stream).to(tl.pointer_type(tl.float16)) + place.to(tl.int64) * groups + group
        value = code.to(tl.float32) * tl.load(scale, mask=there, other=0.0).to(tl.float32)
    else:
        value = tl.load(start + row.to(tl.int64) * dim + cols, mask=there, other=0.0).to(tl.float32)
        if BITS == 8:
            scale = tl.load(scales + stream).to(tl.pointer_type(tl.float32)) + place
            value *= tl.load(scale, mask=held, other=0.0)
    return value


@triton.jit
def _keep_packed(rows, at, address, scales, stream, row, place, dim, wanted, BLOCK: tl.constexpr):
    """Write one row in 4 bits."""
    groups = tl.cdiv(dim, GROUP)
    group, lane = tl.arange(0, BLOCK // GROUP), tl.arange(0, HALF)
    cols = group[:, None] * GROUP + lane[None, :]
    low = tl.load(rows + at + cols, mask=cols < dim, other=0.0).to(tl.float32)
    high = tl.load(rows + at + cols + HALF, mask=cols + HALF < dim, other=0.0).to(tl.float32)
    most = tl.maximum(tl.max(tl.abs(low), axis=1), tl.max(tl.abs(high), axis=1)) / 7.0
    scale = tl.minimum(tl.maximum(most, 6e-8), 65504.0).to(tl.float16)
    wide = scale.to(tl.float32)[:, None]
    # Adding and taking away 1.5 * 2^23 rounds half to even.
    low = (low / wide + 12582912.0) - 12582912.0
    high = (high / wide + 12582912.0) - 12582912.0
    low = tl.minimum(tl.maximum(low, -7.0), 7.0).to(tl.int32) + 8
    high = tl.minimum(tl.maximum(high, -7.0), 7.0).to(tl.int32) + 8
    inside = group < groups * wanted
    to = address.to(tl.pointer_type(tl.uint8)) + row.to(tl.int64) * (groups * HALF)
    tl.store(to + group[:, None] * HALF + lane[None, :], (low | (high << 4)).to(tl.uint8), mask=inside[:, None])
    start = tl.load(scales + stream).to(tl.pointer_type(tl.float16)) + place.to(tl.int64) * groups
    tl.store(start + group, scale, mask=inside)


@triton.jit
def _keep(
    rows, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, valid, cols,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one row where its stream keeps it; `valid` 0: not at all."""
    address = tl.load(codes + stream)
    wanted = valid * (address != 0).to(tl.int32)
    row, place = layer * tokens + token, kind_layer * tokens + token
    if BITS == 4:
        _keep_packed(rows, at, address, scales, stream, row, place, dim, wanted, BLOCK)
    else:
        value = tl.load(rows + at + cols, mask=cols < dim, other=0.0)
        to = _codes(address, rows, BITS) + row.to(tl.int64) * dim + cols
        if BITS == 8:
            wide = value.to(tl.float32)
            scale = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-8) / 127.0
            # Adding and taking away 1.5 * 2^23 rounds half to even.
            code = (wide / scale + 12582912.0) - 12582912.0
            tl.store(to, code.to(tl.int8), mask=cols < dim * wanted)
            start = tl.load(scales + stream).to(tl.pointer_type(tl.float32))
            tl.store(start + place, scale, mask=wanted != 0)
        else:
            tl.store(to, value, mask=cols < dim * wanted)


@triton.jit
def _either(
    fresh, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, first, BITS: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """SIZE columns of one token's branch from `first` on, float32: row `at` of the fresh ones, or below 0 as it is
    stored. Both are asked for at once, as these kernels wait for memory."""
    cols = first + tl.arange(0, SIZE)
    address = tl.load(codes + stream)
    new, held = (at >= 0).to(tl.int32), (address != 0).to(tl.int32)
    value = tl.load(fresh + at * dim + cols, mask=cols < dim * new, other=0.0).to(tl.float32)
    row, place = layer * tokens + token, kind_layer * tokens + token
    there = cols < dim * (held - held * new)
    start = _codes(address, fresh, BITS)
    old = _stored(start, scales, stream, row, place, address != 0, dim, cols, there, BITS)
    return tl.where(new > 0, value, old)


@triton.jit
def _missed(at, ages, missed, stream, token, layer, tokens, dim, first, AGES: tl.constexpr, SIZE: tl.constexpr):
    """What a token without a fresh row has missed since it looked, SIZE columns from `first` on, float32."""
    cols = first + tl.arange(0, SIZE)
    address = tl.load(ages + stream)
    held = (address != 0).to(tl.int32) * (at < 0).to(tl.int32)
    age_at = address.to(tl.pointer_type(tl.uint8)) + layer * tokens + token
    age = tl.load(age_at, mask=address != 0, other=0).to(tl.int32)
    since = tl.multiple_of(tl.load(missed + stream).to(tl.pointer_type(tl.float32)), 16)
    return tl.load(since + (layer * AGES + age).to(tl.int64) * dim + cols, mask=cols < dim * held, other=0.0)


@triton.jit(do_not_specialize=["layer", "kind_layer"])
def norm_middle(
    x,
    flat,
    place,
    fresh,
    codes,
    scales,
    ages,
    missed,
    weight,
    bias,
    normed,
    tokens,
    layer,
    kind_layer,
    dim,
    room,
    eps,
    RMS: tl.constexpr,
    EARLY: tl.constexpr,
    BITS: tl.constexpr,
    AGES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
):
    """The norm of chosen rows behind their attention branch."""
    behind(EARLY)
    slot, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * room + slot
    source = tl.load(flat + row).to(tl.int64)
    at = tl.load(place + source).to(tl.int64)
    token = (source - stream * tokens).to(tl.int32)
    kind: tl.constexpr = x.dtype.element_ty
    main, rest = load_row(x + source * dim, dim, MAIN, REST)
    main_part = _either(fresh, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, 0, BITS, MAIN)
    rest_part = _either(fresh, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, MAIN, BITS, REST)
    main_part += _missed(at, ages, missed, stream, token, layer, tokens, dim, 0, AGES, MAIN)
    rest_part += _missed(at, ages, missed, stream, token, layer, tokens, dim, MAIN, AGES, REST)
    main = (main.to(tl.float32) + main_part).to(kind).to(tl.float32)
    rest = (rest.to(tl.float32) + rest_part).to(kind).to(tl.float32)
    store_norm(normed + row * dim, main, rest, weight, bias, dim, eps, RMS, MAIN, REST)


@triton.jit
def _keep_parts(
    main, rest, rows, at, codes, scales, stream, token, layer, kind_layer, tokens, dim,
    BITS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one row where its stream keeps it: `main` and `rest`, which are row `at` of `rows`, float32."""
    if BITS == 4:
        cols = tl.arange(0, BLOCK)
        _keep(rows, at * dim, codes, scales, stream, token, layer, kind_layer, tokens, dim, 1, cols, BITS, BLOCK)
    else:
        address = tl.load(codes + stream)
        if address != 0:
            to = _codes(address, rows, BITS) + (layer * tokens + token).to(tl.int64) * dim
            if BITS == 8:
                main, rest, scale = in_8(main, rest)
                tl.store(tl.load(scales + stream).to(tl.pointer_type(tl.float32)) + kind_layer * tokens + token, scale)
            store_row(to, main, rest, dim, MAIN, REST)


@triton.jit(do_not_specialize=["layer", "kind_layer", "mlp_layer"])
def finish(
    x,
    total,
    attention,
    looking,
    codes,
    mlp,
    working,
    mlp_codes,
    scales,
    ages,
    missed,
    tokens,
    layer,
    kind_layer,
    mlp_layer,
    dim,
    EARLY: tl.constexpr,
    BITS: tl.constexpr,
    AGES: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token behind both branches of a layer, each fresh, which is then stored, or as it is stored."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * tokens + token
    at = tl.load(looking + row).to(tl.int64)
    work = tl.load(working + row).to(tl.int64)
    kind: tl.constexpr = x.dtype.element_ty
    main, rest = load_row(x + row * dim, dim, MAIN, REST)
    main_seen = _either(attention, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, 0, BITS, MAIN)
    rest_seen = _either(attention, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, MAIN, BITS, REST)
    main_mlp = _either(mlp, work, mlp_codes, scales, stream, token, layer, mlp_layer, tokens, dim, 0, BITS, MAIN)
    rest_mlp = _either(mlp, work, mlp_codes, scales, stream, token, layer, mlp_layer, tokens, dim, MAIN, BITS, REST)
    main_moved = main_seen + _missed(at, ages, missed, stream, token, layer, tokens, dim, 0, AGES, MAIN)
    rest_moved = rest_seen + _missed(at, ages, missed, stream, token, layer, tokens, dim, MAIN, AGES, REST)
    main = (main.to(tl.float32) + main_moved).to(kind).to(tl.float32) + main_mlp
    rest = (rest.to(tl.float32) + rest_moved).to(kind).to(tl.float32) + rest_mlp
    store_row(total + row * dim, main, rest, dim, MAIN, REST)
    if at >= 0:
        _keep_parts(
            main_seen, rest_seen, attention, at, codes, scales, stream, token, layer, kind_layer, tokens, dim,
            BITS, MAIN, REST, BLOCK,
        )  # fmt: skip
    if work >= 0:
        _keep_parts(
            main_mlp, rest_mlp, mlp, work, mlp_codes, scales, stream, token, layer, mlp_layer, tokens, dim,
            BITS, MAIN, REST, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["layer", "kind_layer"])
def keep_residual(
    x,
    branch,
    codes,
    scales,
    weight,
    bias,
    total,
    normed,
    tokens,
    layer,
    kind_layer,
    dim,
    eps,
    NORM: tl.constexpr,
    RMS: tl.constexpr,
    EARLY: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token behind a branch that is stored, and NORM: its norm."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * tokens + token
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    wide = tl.load(x + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    wide += tl.load(branch + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    rounded = wide.to(x.dtype.element_ty)
    tl.store(total + row * dim + cols, rounded, mask=inside)
    _keep(branch, row * dim, codes, scales, stream, token, layer, kind_layer, tokens, dim, 1, cols, BITS, BLOCK)
    if NORM:
        _store_norm(rounded.to(tl.float32), weight, bias, normed, row, dim, eps, cols, inside, RMS)


@triton.jit(do_not_specialize=["layer", "kind_layer", "more_kind_layer"])
def keep_coded(
    rows,
    stride,
    more,
    more_stride,
    flat,
    place,
    codes,
    more_codes,
    scales,
    tokens,
    layer,
    kind_layer,
    more_kind_layer,
    dim,
    room,
    count,
    BOTH: tl.constexpr,
    BITS: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store one or two kinds of fresh rows, `count` of each stream, which are the first of its `room` in `flat`."""
    behind(EARLY)
    slot, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    entry = stream * room + slot
    source = tl.load(flat + entry)
    valid = (tl.load(place + source) == entry).to(tl.int32)
    token = (source - stream * tokens).to(tl.int32)
    cols = tl.arange(0, BLOCK)
    at = stream * count + slot
    _keep(rows, at * stride, codes, scales, stream, token, layer, kind_layer, tokens, dim, valid, cols, BITS, BLOCK)
    if BOTH:
        _keep(
            more,
            at * more_stride,
            more_codes,
            scales,
            stream,
            token,
            layer,
            more_kind_layer,
            tokens,
            dim,
            valid,
            cols,
            BITS,
            BLOCK,
        )


@triton.jit
def _fill(codes, scales, filled, stream, token, layer, kind_layer, tokens, dim, cols, BITS: tl.constexpr):
    address = tl.load(codes + stream)
    held = (token < tokens * (address != 0).to(tl.int32))[:, None]
    token, cols = token[:, None], cols[None, :]
    start, narrow = _codes(address, filled, BITS), cols < dim
    row, place = layer * tokens + token, kind_layer * tokens + token
    value = _stored(start, scales, stream, row, place, held, dim, cols, held & narrow, BITS)
    to = filled + (stream.to(tl.int64) * tokens + token) * dim + cols
    tl.store(to, value.to(filled.dtype.element_ty), mask=(token < tokens) & narrow)


@triton.jit(do_not_specialize=["layer", "key_layer", "value_layer"])
def fill_coded(
    key_codes,
    value_codes,
    scales,
    keys,
    values,
    tokens,
    layer,
    key_layer,
    value_layer,
    dim,
    EARLY: tl.constexpr,
    BITS: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    """Stored keys and values of a layer as numbers."""
    behind(EARLY)
    stream = tl.program_id(2)
    token = tl.program_id(0) * R + tl.arange(0, R)
    cols = tl.program_id(1) * K + tl.arange(0, K)
    _fill(key_codes, scales, keys, stream, token, layer, key_layer, tokens, dim, cols, BITS)
    _fill(value_codes, scales, values, stream, token, layer, value_layer, tokens, dim, cols, BITS)
