"""Triton kernels of vision steps over references in 8 bits, which are read and written by address.

Imported only where Triton is there; `coded` launches them, and the plain form of STC-Cacher says what they must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._vision_triton import behind

SKETCH = tl.constexpr(32)


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
def _keep_sketch(now, then, stream, token, row, layer, tokens, valid):
    """What a row's reference was computed from, as it was measured last."""
    address = tl.load(then + stream)
    channel = tl.arange(0, SKETCH)
    to = address.to(tl.pointer_type(tl.float16)) + (layer * tokens + token).to(tl.int64) * SKETCH + channel
    seen = tl.load(now + row * SKETCH + channel)
    tl.store(to, seen, mask=channel < SKETCH * valid * (address != 0).to(tl.int32))


@triton.jit
def _settle(shift, turn_state, shifts, dues, phases, layer, dim, streams, AGES: tl.constexpr):
    """A layer's turn is over: what was missed since each age, and where the turn stands. Programs share the columns."""
    stream = tl.program_id(1).to(tl.int64)
    address = tl.load(shifts + stream)
    going = tl.load(turn_state + stream) * (address != 0).to(tl.int32)
    base = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16) + tl.cast(layer, tl.int64) * AGES * dim
    for first in range(tl.program_id(0) * 128, dim * going, tl.num_programs(0) * 128):
        cols = first + tl.arange(0, 128)
        inside = cols < dim
        more = tl.load(shift + stream * dim + cols, mask=inside, other=0.0)
        for back in range(AGES - 1):
            to = base + (AGES - 1 - back) * dim + cols
            tl.store(to, tl.load(to - dim, mask=inside, other=0.0) + more, mask=inside)
    if tl.program_id(0) == 0:
        due = tl.load(dues + stream)
        due_at = due.to(tl.pointer_type(tl.int32)) + layer
        tl.store(due_at, tl.load(turn_state + streams + stream), mask=due != 0)
        phase = tl.load(phases + stream)
        phase_at = phase.to(tl.pointer_type(tl.int32)) + layer
        tl.store(phase_at, tl.load(turn_state + 2 * streams + stream), mask=phase != 0)


@triton.jit(do_not_specialize=["layer", "kind_layer"])
def add_rows(
    x,
    total,
    fresh,
    place,
    codes,
    scales,
    ages,
    shifts,
    shift,
    active,
    length,
    times,
    now,
    then,
    tokens,
    layer,
    kind_layer,
    dim,
    room,
    changed,
    plane,
    EARLY: tl.constexpr,
    BRANCH: tl.constexpr,
    SHIFT: tl.constexpr,
    CODED: tl.constexpr,
    AGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token: BRANCH adds its branch, stored (SHIFT: with what those who did not look have missed) or fresh, which
    is then stored; and how long the sum is. Of a fresh MLP branch, also the sketch of what it was computed from."""
    behind(EARLY)
    token, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * tokens + token
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    wide = tl.load(x + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    if BRANCH:
        at = tl.load(place + row).to(tl.int64)
        address = tl.load(codes + stream)
        held = dim * (address != 0).to(tl.int32)
        if SHIFT:
            age_at = tl.load(ages + stream).to(tl.pointer_type(tl.uint8)) + layer * tokens + token
            age = tl.load(age_at, mask=address != 0, other=0).to(tl.int32)
            going = tl.load(active + stream)
        if at >= 0:
            _keep(fresh, at * dim, codes, scales, stream, token, layer, kind_layer, tokens, dim, 1, cols, CODED)
            wide += tl.load(fresh + at * dim + cols, mask=inside, other=0.0).to(tl.float32)
        else:
            old = _codes(address, x, CODED) + (layer * tokens + token).to(tl.int64) * dim
            branch = tl.load(old + cols, mask=cols < held, other=0.0).to(tl.float32)
            if CODED:
                scale = tl.load(scales + stream).to(tl.pointer_type(tl.float32)) + kind_layer * tokens + token
                branch *= tl.load(scale, mask=address != 0, other=0.0)
            if SHIFT:
                missed = tl.multiple_of(tl.load(shifts + stream).to(tl.pointer_type(tl.float32)), 16)
                missed += (layer * AGES + age).to(tl.int64) * dim
                branch += tl.load(missed + cols, mask=cols < held, other=0.0)
                branch += tl.load(shift + stream * dim + cols, mask=cols < held, other=0.0)
            wide += branch
        rounded = wide.to(x.dtype.element_ty)
        tl.store(total + row * dim + cols, rounded, mask=inside)
        wide = rounded.to(tl.float32)
        if SHIFT:
            aged = tl.where(at >= 0, 0, tl.minimum(age + 1, AGES - 1))
            tl.store(age_at, aged.to(tl.uint8), mask=(going != 0) & (address != 0))
            if at >= 0:
                looked = times + plane + row
                tl.store(looked, tl.load(looked) + 1.0)
                if at - stream * room < changed:
                    tl.store(times + row, tl.load(times + row) + 1.0)
        elif at >= 0:
            worked = times + 2 * plane + row
            tl.store(worked, tl.load(worked) + 1.0)
            _keep_sketch(now, then, stream, token, row, layer, tokens, 1)
    tl.store(length + row, tl.sqrt(tl.sum(wide * wide, axis=0)))


@triton.jit(do_not_specialize=["layer"])
def compare(
    sketches,
    then,
    now,
    apart,
    tokens,
    layer,
    factor,
    shift,
    turn_state,
    shifts,
    dues,
    phases,
    dim,
    streams,
    EARLY: tl.constexpr,
    KEEP: tl.constexpr,
    SETTLE: tl.constexpr,
    AGES: tl.constexpr,
    R: tl.constexpr,
):
    """How far sketches are from what the references of a layer were computed from; KEEP: they are that from now on.
    `sketches` are sums over signs, `factor` is the rest of the projection. SETTLE: the layer's turn is over besides."""
    behind(EARLY)
    if SETTLE:
        _settle(shift, turn_state, shifts, dues, phases, layer, dim, streams, AGES)
    stream = tl.program_id(1)
    token = tl.program_id(0) * R + tl.arange(0, R)
    inside = token < tokens
    row = stream.to(tl.int64) * tokens + token
    channel = tl.arange(0, SKETCH)
    own = row[:, None] * SKETCH + channel[None, :]
    sketch = tl.load(sketches + own, mask=inside[:, None], other=0.0) * factor
    sketch = tl.minimum(tl.maximum(sketch, -60000.0), 60000.0).to(tl.float16)
    address = tl.load(then + stream)
    held = token < tokens * (address != 0).to(tl.int32)
    at = tl.multiple_of(address.to(tl.pointer_type(tl.float16)), 16)
    at = at + (layer * tokens + token).to(tl.int64)[:, None] * SKETCH + channel[None, :]
    if KEEP:
        tl.store(at, sketch, mask=held[:, None])
    else:
        tl.store(now + own, sketch, mask=inside[:, None])
        before = tl.load(at, mask=held[:, None], other=0.0).to(tl.float32)
        difference = sketch.to(tl.float32) - before
        tl.store(apart + row, tl.sqrt(tl.sum(difference * difference, axis=1)), mask=inside)


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
    now,
    then,
    tokens,
    layer,
    kind_layer,
    more_kind_layer,
    dim,
    room,
    count,
    BOTH: tl.constexpr,
    SKETCHES: tl.constexpr,
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
    if SKETCHES:
        _keep_sketch(now, then, stream, token, source, layer, tokens, valid)


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


@triton.jit(do_not_specialize=["layer", "kind_layer"])
def common_shift(
    fresh,
    flat,
    place,
    codes,
    scales,
    ages,
    shifts,
    shift,
    tokens,
    layer,
    kind_layer,
    dim,
    room,
    first,
    EARLY: tl.constexpr,
    CODED: tl.constexpr,
    AGES: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
):
    """What those who only had their turn found new, on average: some columns of a stream. Their rows begin at `first`
    of its `room`."""
    behind(EARLY)
    stream = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    narrow = (cols < dim)[None, :]
    address = tl.load(codes + stream)
    start = _codes(address, fresh, CODED)
    age_start = tl.load(ages + stream).to(tl.pointer_type(tl.uint8))
    missed = tl.multiple_of(tl.load(shifts + stream).to(tl.pointer_type(tl.float32)), 16)
    total = tl.full((SLOTS, COLS), 0.0, tl.float32)
    asked = tl.full((SLOTS,), 0, tl.int32)
    for begin in range(first, room, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        entry = stream * room + slot
        source = tl.load(flat + entry, mask=slot < room, other=0)
        asks = (tl.load(place + source, mask=slot < room, other=-1) == entry) & (slot < room)
        asks = asks & (slot * 0 + (address != 0).to(tl.int32) > 0)
        token = (source - stream * tokens).to(tl.int32)
        scale = _row_scales(scales, stream, kind_layer * tokens + token, asks, CODED)
        age = tl.load(age_start + layer * tokens + token, mask=asks, other=0).to(tl.int32)
        wanted = asks[:, None] & narrow
        at = start + (layer * tokens + token).to(tl.int64)[:, None] * dim + cols[None, :]
        old = tl.load(at, mask=wanted, other=0.0).to(tl.float32) * scale[:, None]
        since = (layer * AGES + age).to(tl.int64)[:, None] * dim + cols[None, :]
        old += tl.load(missed + since, mask=wanted, other=0.0)
        new = tl.load(fresh + entry[:, None] * dim + cols[None, :], mask=wanted, other=0.0).to(tl.float32)
        total += new - old
        asked += asks.to(tl.int32)
    number = tl.maximum(tl.sum(asked, axis=0), 1).to(tl.float32)
    tl.store(shift + stream * dim + cols, tl.sum(total, axis=0) / number, mask=cols < dim)
