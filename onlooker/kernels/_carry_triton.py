"""Triton kernels of vision steps over references: sketches carried from branch to branch, and what turns to look found.

Imported only where Triton is there; `coded` launches them, and the plain form of STC-Cacher says what they must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._coded_triton import _codes, _stored
from onlooker.kernels._vision_triton import behind

SKETCH = tl.constexpr(32)


@triton.jit
def _sketches(address, layer, tokens, token):
    """Where a layer's sketches of these tokens begin."""
    at = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)
    return at + (layer * tokens + token).to(tl.int64)[:, None] * SKETCH + tl.arange(0, SKETCH)[None, :]


@triton.jit
def _end_of_turn(counters, now, stream, layer):
    """A layer's counter of a stream that has one takes the value that it has after this turn."""
    counter = tl.load(counters + stream)
    tl.store(counter.to(tl.pointer_type(tl.int32)) + layer, tl.load(now + stream), mask=counter != 0)


@triton.jit(do_not_specialize=["layer", "next_layer"])
def carry(
    seen, fresh, place, branches, befores, thens, ages, missed, turn_state, dues, phases, apart, length, times,
    tokens, layer, next_layer, factor, room, changed, plane, streams,
    EARLY: tl.constexpr, BRANCH: tl.constexpr, SHIFT: tl.constexpr, KEEP: tl.constexpr, AGES: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """Sketches of tokens, brought from before a branch to behind it, and how far they are then from those in `thens`;
    KEEP: they are those from now on. `fresh` are sums over signs of fresh rows, of which `factor` makes sketches.

    Of tokens with a fresh row, that and what they were computed from (`befores`) is stored; the others have the stored
    branch, SHIFT: with what they missed since they looked, and the turn is over after this. Without BRANCH `fresh` are
    the tokens themselves."""
    behind(EARLY)
    stream = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * R + tl.arange(0, R)
    inside = token < tokens
    row = stream * tokens + token
    channel = tl.arange(0, SKETCH)[None, :]
    own = seen + row[:, None] * SKETCH + channel
    address = tl.load(thens + stream)
    held = token < tokens * (address != 0).to(tl.int32)
    if BRANCH:
        sketch = tl.load(own, mask=inside[:, None], other=0.0)
        at = tl.load(place + row, mask=inside, other=-1).to(tl.int64)
        taken = at >= 0
        stored = _sketches(tl.load(branches + stream), layer, tokens, token)
        before = _sketches(tl.load(befores + stream), layer, tokens, token)
        new = tl.load(fresh + at[:, None] * SKETCH + channel, mask=taken[:, None], other=0.0) * factor
        old = tl.load(stored, mask=(held & (taken == 0))[:, None], other=0.0)
        tl.store(stored, new, mask=(held & taken)[:, None])
        if SHIFT:
            changes = taken & (at - stream * room < changed)
            tl.store(before, sketch, mask=(held & changes)[:, None])
            going = tl.load(turn_state + stream)
            age_at = tl.load(ages + stream).to(tl.pointer_type(tl.uint8)) + layer * tokens + token
            age = tl.load(age_at, mask=held, other=0).to(tl.int32)
            aged = tl.where(taken, 0, tl.minimum(age + going, AGES - 1))
            tl.store(age_at, aged.to(tl.uint8), mask=held)
            base = tl.multiple_of(tl.load(missed + stream).to(tl.pointer_type(tl.float32)), 16)
            since = base + (layer * AGES + aged).to(tl.int64)[:, None] * SKETCH + channel
            old += tl.load(since, mask=(held & (taken == 0))[:, None], other=0.0)
            looked = times + plane + row
            tl.store(looked, tl.load(looked, mask=taken, other=0.0) + 1.0, mask=taken)
            tl.store(times + row, tl.load(times + row, mask=changes, other=0.0) + 1.0, mask=changes)
            if tl.program_id(0) == 0:
                _end_of_turn(dues, turn_state + streams, stream, layer)
                _end_of_turn(phases, turn_state + 2 * streams, stream, layer)
        else:
            tl.store(before, sketch, mask=(held & taken)[:, None])
            worked = times + 2 * plane + row
            tl.store(worked, tl.load(worked, mask=taken, other=0.0) + 1.0, mask=taken)
        sketch += new + old
    else:
        sketch = tl.load(fresh + row[:, None] * SKETCH + channel, mask=inside[:, None], other=0.0) * factor
    tl.store(own, sketch, mask=inside[:, None])
    then = _sketches(address, next_layer, tokens, token)
    if KEEP:
        tl.store(then, sketch, mask=held[:, None])
    else:
        reference = tl.load(then, mask=held[:, None], other=0.0)
        difference = sketch - reference
        tl.store(apart + row, tl.sqrt(tl.sum(difference * difference, axis=1)), mask=inside)
        tl.store(length + row, tl.sqrt(tl.sum(reference * reference, axis=1)), mask=inside)


@triton.jit
def _share(
    fresh, factor, flat, place, start, scales, ages, missed, turn_state, stream, cols, tokens, layer, kind_layer, width,
    room, first, BITS: tl.constexpr, AGES: tl.constexpr, SLOTS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Some columns of what those who only had their turn found new, on average: missed by the others since."""
    narrow = (cols < width)[None, :]
    ages_at = tl.load(ages + stream)
    there = (ages_at != 0).to(tl.int32)
    age_start = ages_at.to(tl.pointer_type(tl.uint8))
    since_all = tl.multiple_of(tl.load(missed + stream).to(tl.pointer_type(tl.float32)), 16)
    since_all += tl.cast(layer, tl.int64) * AGES * width
    total = tl.full((SLOTS, COLS), 0.0, tl.float32)
    asked = tl.full((SLOTS,), 0, tl.int32)
    for begin in range(first, room, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        entry = stream * room + slot
        source = tl.load(flat + entry, mask=slot < room, other=0)
        asks = (tl.load(place + source, mask=slot < room, other=-1) == entry) & (slot < room * there)
        token = (source - stream * tokens).to(tl.int32)
        age = tl.load(age_start + layer * tokens + token, mask=asks, other=0).to(tl.int32)
        wanted = asks[:, None] & narrow
        row, of_scale = (layer * tokens + token)[:, None], (kind_layer * tokens + token)[:, None]
        old = _stored(start, scales, stream, row, of_scale, asks[:, None], width, cols[None, :], wanted, BITS)
        old += tl.load(since_all + age[:, None] * width + cols[None, :], mask=wanted, other=0.0)
        new = tl.load(fresh + entry[:, None] * width + cols[None, :], mask=wanted, other=0.0).to(tl.float32) * factor
        total += new - old
        asked += asks.to(tl.int32)
    number = tl.maximum(tl.sum(asked, axis=0), 1).to(tl.float32)
    shift = tl.sum(total, axis=0) / number
    inside = cols < width * there * tl.load(turn_state + stream)
    for back in range(AGES - 1):
        to = since_all + (AGES - 1 - back) * width + cols
        tl.store(to, tl.load(to - width, mask=inside, other=0.0) + shift, mask=inside)


@triton.jit(do_not_specialize=["layer", "kind_layer"])
def common_shift(
    fresh,
    sketches,
    factor,
    flat,
    place,
    codes,
    sketch_codes,
    scales,
    ages,
    shifts,
    shift_sketches,
    turn_state,
    tokens,
    layer,
    kind_layer,
    dim,
    room,
    first,
    EARLY: tl.constexpr,
    BITS: tl.constexpr,
    AGES: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
):
    """What those who only had their turn found new, on average, which all others have missed since: some columns of a
    stream, or the sketch. Their rows begin at `first` of its `room`."""
    behind(EARLY)
    stream = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(0) * COLS
    cols = tl.arange(0, COLS)
    if begin < dim:
        start = _codes(tl.load(codes + stream), fresh, BITS)
        _share(
            fresh, 1.0, flat, place, start, scales, ages, shifts, turn_state, stream, begin + cols, tokens, layer,
            kind_layer, dim, room, first, BITS, AGES, SLOTS, COLS,
        )  # fmt: skip
    else:
        own = tl.multiple_of(tl.load(sketch_codes + stream).to(tl.pointer_type(tl.float32)), 16)
        _share(
            sketches, factor, flat, place, own, scales, ages, shift_sketches, turn_state, stream, cols, tokens, layer,
            kind_layer, SKETCH, room, first, tl.constexpr(0), AGES, SLOTS, COLS,
        )  # fmt: skip
