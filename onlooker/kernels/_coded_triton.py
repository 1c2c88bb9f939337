"""Triton kernels of vision steps over references in 8 bits, which are read and written by address.

Imported only where Triton is there; `coded` launches them, and the plain form of STC-Cacher says what they must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._vision_triton import _store_norm, behind


@triton.jit
def _codes(address, like, CODED: tl.constexpr):
    """Where a stream's stored rows begin."""
    if CODED:
        start = address.to(tl.pointer_type(tl.int8))
    else:
        start = address.to(tl.pointer_type(like.dtype.element_ty))
    return tl.multiple_of(start, 16)


@triton.jit
def _row_scales(scales, stream, place, there, CODED: tl.constexpr):
    """What stored rows are multiplied with; `place` counts rows through kinds and layers."""
    if CODED:
        start = tl.load(scales + stream).to(tl.pointer_type(tl.float32))
        return tl.load(start + place, mask=there, other=0.0)
    return tl.where(there, 1.0, 0.0)


@triton.jit
def _keep(rows, at, codes, scales, stream, token, layer, kind_layer, tokens, dim, valid, cols, CODED: tl.constexpr):
    """Write one row where its stream keeps it; `valid` 0: not at all."""
    address = tl.load(codes + stream)
    wanted = valid * (address != 0).to(tl.int32)
    value = tl.load(rows + at + cols, mask=cols < dim, other=0.0)
    to = _codes(address, rows, CODED) + (layer * tokens + token).to(tl.int64) * dim + cols
    if CODED:
        wide = value.to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-8) / 127.0
        # Adding and taking away 1.5 * 2^23 rounds half to even.
        code = (wide / scale + 12582912.0) - 12582912.0
        tl.store(to, code.to(tl.int8), mask=cols < dim * wanted)
        start = tl.load(scales + stream).to(tl.pointer_type(tl.float32))
        tl.store(start + kind_layer * tokens + token, scale, mask=wanted != 0)
    else:
        tl.store(to, value, mask=cols < dim * wanted)


@triton.jit
def _branch(codes, scales, stream, token, layer, kind_layer, tokens, dim, like, cols, CODED: tl.constexpr):
    """A row of a stored branch, float32."""
    address = tl.load(codes + stream)
    held = dim * (address != 0).to(tl.int32)
    old = _codes(address, like, CODED) + (layer * tokens + token).to(tl.int64) * dim
    branch = tl.load(old + cols, mask=cols < held, other=0.0).to(tl.float32)
    if CODED:
        scale = tl.load(scales + stream).to(tl.pointer_type(tl.float32)) + kind_layer * tokens + token
        branch *= tl.load(scale, mask=address != 0, other=0.0)
    return branch


@triton.jit
def _attention(
    fresh, at, codes, scales, ages, missed, stream, token, layer, kind_layer, tokens, dim, cols,
    CODED: tl.constexpr, AGES: tl.constexpr,
):  # fmt: skip
    """The attention branch of one token, float32: fresh, or stored with what it missed since it looked."""
    if at >= 0:
        branch = tl.load(fresh + at * dim + cols, mask=cols < dim, other=0.0).to(tl.float32)
    else:
        branch = _branch(codes, scales, stream, token, layer, kind_layer, tokens, dim, fresh, cols, CODED)
        address = tl.load(ages + stream)
        held = dim * (address != 0).to(tl.int32)
        age_at = address.to(tl.pointer_type(tl.uint8)) + layer * tokens + token
        age = tl.load(age_at, mask=address != 0, other=0).to(tl.int32)
        since = tl.multiple_of(tl.load(missed + stream).to(tl.pointer_type(tl.float32)), 16)
        since += (layer * AGES + age).to(tl.int64) * dim
        branch += tl.load(since + cols, mask=cols < held, other=0.0)
    return branch


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
    CODED: tl.constexpr,
    AGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The norm of chosen rows behind their attention branch."""
    behind(EARLY)
    slot, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * room + slot
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    source = tl.load(flat + row).to(tl.int64)
    at = tl.load(place + source).to(tl.int64)
    token = (source - stream * tokens).to(tl.int32)
    value = tl.load(x + source * dim + cols, mask=inside, other=0.0).to(tl.float32)
    value += _attention(
        fresh, at, codes, scales, ages, missed, stream, token, layer, kind_layer, tokens, dim, cols, CODED, AGES
    )
    value = value.to(x.dtype.element_ty).to(tl.float32)
    _store_norm(value, weight, bias, normed, row, dim, eps, cols, inside, RMS)


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
    CODED: tl.constexpr,
    AGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token behind both branches of a layer, each fresh, which is then stored, or as it is stored."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * tokens + token
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    wide = tl.load(x + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    at = tl.load(looking + row).to(tl.int64)
    mlp_at = tl.load(working + row).to(tl.int64)
    wide += _attention(
        attention, at, codes, scales, ages, missed, stream, token, layer, kind_layer, tokens, dim, cols, CODED, AGES
    )
    wide = wide.to(x.dtype.element_ty).to(tl.float32)
    if at >= 0:
        _keep(attention, at * dim, codes, scales, stream, token, layer, kind_layer, tokens, dim, 1, cols, CODED)
    if mlp_at >= 0:
        wide += tl.load(mlp + mlp_at * dim + cols, mask=inside, other=0.0).to(tl.float32)
        _keep(mlp, mlp_at * dim, mlp_codes, scales, stream, token, layer, mlp_layer, tokens, dim, 1, cols, CODED)
    else:
        wide += _branch(mlp_codes, scales, stream, token, layer, mlp_layer, tokens, dim, mlp, cols, CODED)
    tl.store(total + row * dim + cols, wide.to(x.dtype.element_ty), mask=inside)


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
    CODED: tl.constexpr,
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
    _keep(branch, row * dim, codes, scales, stream, token, layer, kind_layer, tokens, dim, 1, cols, CODED)
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
    CODED: tl.constexpr,
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
    _keep(rows, at * stride, codes, scales, stream, token, layer, kind_layer, tokens, dim, valid, cols, CODED)
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
            CODED,
        )


@triton.jit
def _fill(codes, scales, filled, stream, token, layer, kind_layer, tokens, dim, cols, CODED: tl.constexpr):
    address = tl.load(codes + stream)
    held = token < tokens * (address != 0).to(tl.int32)
    narrow = (cols < dim)[None, :]
    at = _codes(address, filled, CODED) + (layer * tokens + token).to(tl.int64) * dim
    scale = _row_scales(scales, stream, kind_layer * tokens + token, held, CODED)
    value = tl.load(at[:, None] + cols[None, :], mask=held[:, None] & narrow, other=0.0).to(tl.float32) * scale[:, None]
    to = filled + (stream.to(tl.int64) * tokens + token)[:, None] * dim + cols[None, :]
    tl.store(to, value.to(filled.dtype.element_ty), mask=(token < tokens)[:, None] & narrow)


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
    CODED: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    """Stored keys and values of a layer as numbers."""
    behind(EARLY)
    stream = tl.program_id(2)
    token = tl.program_id(0) * R + tl.arange(0, R)
    cols = tl.program_id(1) * K + tl.arange(0, K)
    _fill(key_codes, scales, keys, stream, token, layer, key_layer, tokens, dim, cols, CODED)
    _fill(value_codes, scales, values, stream, token, layer, value_layer, tokens, dim, cols, CODED)
