"""Triton kernels of the corrected Cacher's choices: who stands out, who changed most, and whose turn it is.

Imported only where Triton is there; `corrected` launches them, and the plain form of `stc_corrected` says what they
must equal. Address 0 is no stream.
"""

# Types and numbers are constants where a kernel calls another, and sums are no tuples.
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from onlooker.kernels._corrected_triton import SKETCH, kept_sketches
from onlooker.kernels._mend_triton import bytes_at
from onlooker.kernels._vision_triton import behind

HALF = tl.constexpr(32768)
"""More than tokens of a frame."""
AT_ONCE = tl.constexpr(16)
"""Limits that a search tries at a time."""


@triton.jit
def _far(sketch, parts, stream, tokens, blocks, BLOCKS: tl.constexpr):
    """How far sketches `[some, 64]` are from the mean of their frame, whose sum is in `blocks` parts."""
    block = tl.arange(0, BLOCKS)
    part = parts + (stream * blocks + block)[:, None] * SKETCH + tl.arange(0, SKETCH)[None, :]
    mean = tl.sum(tl.load(part, mask=(block < blocks)[:, None], other=0.0), axis=0) / tokens
    away = sketch - mean[None, :]
    return tl.sqrt(tl.sum(away * away, axis=1))


@triton.jit
def _stand_out(
    seen, parts, thens, scales, far, arrived, stream, tokens, layer, layers, blocks, parts_plane,
    T: tl.constexpr, EITHER: tl.constexpr, BLOCKS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """How far R tokens are from the mean of their frame (EITHER: or were, by `thens`) goes to `far`; how many programs
    of the stream have done so."""
    token = tl.program_id(0) * R + tl.arange(0, R)
    inside = token < tokens
    at = stream * tokens + token
    own = seen + at[:, None] * SKETCH + tl.arange(0, SKETCH)[None, :]
    away = _far(tl.load(own, mask=inside[:, None], other=0.0), parts, stream, tokens, blocks, BLOCKS)
    if EITHER:
        scale = bytes_at(scales, stream, tl.float16, 2)
        row, held = (layer * tokens + token).to(tl.int64), (T * layers + layer) * tokens + token
        then = kept_sketches(bytes_at(thens, stream, tl.int8, 16), scale, row, held, inside)
        away = tl.maximum(away, _far(then, parts + parts_plane, stream, tokens, blocks, BLOCKS))
    # Where all multiprocessors see it; all of it, before it is said.
    shared = far.to(tl.pointer_type(tl.int32)) + at
    tl.atomic_xchg(shared, away.to(tl.int32, bitcast=True), mask=inside, sem="relaxed")
    tl.debug_barrier()
    return tl.atomic_add(arrived + stream, 1, sem="acq_rel") + 1


@triton.jit
def _of_units(tokens, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Means of numbers of tokens, `[BLOCK]`, over the units that are chosen as a whole."""
    return tl.sum(tl.reshape(tokens, (BLOCK // GROUP, GROUP)), axis=1) / GROUP


@triton.jit
def _most(steps, most):
    """The `most` units of the most steps, of equal ones the first, int32."""
    high = tl.max(steps, axis=0) + 1
    low, column = high * 0, steps[:, None]
    while high - low > 1:  # every time a sixteenth of what is between them
        wide = (high - low + AT_ONCE - 1) // AT_ONCE
        limits = low + (tl.arange(0, AT_ONCE) + 1) * wide
        many = tl.sum((column >= limits[None, :]).to(tl.int32), axis=0)
        enough = tl.sum((many >= most).to(tl.int32), axis=0)
        high = tl.minimum(high, low + (enough + 1) * wide)
        low += enough * wide
    above = (steps > low).to(tl.int32)
    tied = (steps == low).to(tl.int32)
    return above + tied * (tl.cumsum(tied, axis=0) <= most - tl.sum(above, axis=0)).to(tl.int32)


@triton.jit(do_not_specialize=["layer"])
def choose_rows(
    apart, length, seen, parts, thens, scales, far, arrived, taus, turns, flat, place, attends, counts,
    times, tokens, units, most, room, asking, layer, layers, salience, flat_share, plane, blocks, parts_plane,
    T: tl.constexpr, TURN: tl.constexpr, PINNED: tl.constexpr, EVERY: tl.constexpr, ATTEND: tl.constexpr,
    STEPS: tl.constexpr, GROUP: tl.constexpr, SALIENT: tl.constexpr, EITHER: tl.constexpr, EARLY: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The `most` units of a stream that changed most, of those that changed enough. Their tokens come first in the
    stream's `room` of `flat`; TURN: behind them the pinned ones and those whose turn it is to look, if anything
    changed. `counts` says how many changed and look; without TURN, how many changed comes last. ATTEND above 1: of all
    others those attend whose turn it is. Who attends has a row of the stream's `asking` in `attends`.

    SALIENT: a program finds who stands out of R tokens (EITHER: or did, by `thens`), and the one that is the last of
    its stream to have done so chooses: a launch of its own would take longer, and one program alone as well."""
    behind(EARLY)
    stream = tl.program_id(1).to(tl.int64)
    address = tl.load(taus + stream)
    if address == 0:  # an earlier step may have had a stream here
        tl.store(counts + stream * 4 + tl.arange(0, 4), tl.full((4,), 0, tl.int32))
        return
    if SALIENT:
        arrived_now = _stand_out(
            seen, parts, thens, scales, far, arrived, stream, tokens, layer, layers, blocks, parts_plane, T, EITHER,
            BLOCKS, R,
        )  # fmt: skip
        if arrived_now < tl.num_programs(0):
            return
        tl.store(arrived + stream, 0)
    tau = tl.load(address.to(tl.pointer_type(tl.float32)))
    if TURN:
        counter = tl.load(turns + stream).to(tl.pointer_type(tl.int32)) + layer
        turn = tl.load(counter)
    token = tl.arange(0, BLOCK)
    inside = token < tokens
    at = stream * tokens + token
    there = tl.arange(0, BLOCK // GROUP) < units
    mean = tl.maximum(tl.sum(tl.load(length + at, mask=inside, other=0.0), axis=0) / tokens, 1e-12)
    change = _of_units(tl.load(apart + at, mask=inside, other=0.0), GROUP, BLOCK)
    if SALIENT:
        # Not from what this multiprocessor may still hold of an earlier layer.
        out = _of_units(tl.load(far + at, mask=inside, other=0.0, cache_modifier=".cg"), GROUP, BLOCK)
        out = tl.maximum(out / tl.maximum(tl.sum(out, axis=0) / units, 1e-12), flat_share)
        change *= tl.exp2(tl.log2(out) * salience)
    limit = ((tau * STEPS + 0.5).to(tl.int32).to(tl.float32) + 0.5) * mean / STEPS
    steps = tl.minimum(change * (STEPS / mean) + 0.5, 1073741824.0).to(tl.int32)
    steps = tl.where(there & (change >= limit), steps, -1)
    taken = (steps >= 0).to(tl.int32)
    if tl.sum(taken, axis=0) > most:
        taken = _most(steps, most)
    taken = tl.reshape(tl.broadcast_to(taken[:, None], (BLOCK // GROUP, GROUP)), (BLOCK,)) * inside.to(tl.int32)
    if TURN:
        number = (token - PINNED) // GROUP
        due = (token < PINNED) | ((token >= PINNED) & ((number + EVERY - turn % EVERY) % EVERY == 0))
        looks = (due & inside).to(tl.int32) * (1 - taken)
        # Both counted at once, in the halves of a number.
        together = taken + looks * HALF
        total, places = tl.sum(together, axis=0), tl.cumsum(together, axis=0)
        changed = total % HALF
        active = (changed > 0).to(tl.int32)
        looks *= active
        looking = changed + total // HALF * active
        row = stream * room + tl.where(taken > 0, places % HALF, changed + places // HALF) - 1
        found = tl.where(taken + looks > 0, row, -1)
        tl.store(flat + row, at, mask=taken + looks > 0)
        rest = inside.to(tl.int32) * (1 - taken) * (1 - looks) * active
        if ATTEND > 1:
            rest *= ((token >= PINNED) & ((number + ATTEND - turn % ATTEND) % ATTEND == 0)).to(tl.int32)
            _tell_attending(attends + at, found - stream * room, rest, looking, stream * asking, inside)
        tl.store(counts + stream * 4, changed)
        tl.store(counts + stream * 4 + 1, looking)
        _count_looking(times + at, plane, taken, looks, rest, inside)
        tl.debug_barrier()
        tl.store(counter, (turn + active) % (EVERY * ATTEND))
    else:
        row = stream * room + tl.cumsum(taken, axis=0) - 1
        found = tl.where(taken > 0, row, -1)
        tl.store(flat + row, at, mask=taken > 0)
        tl.store(counts + stream * 4 + 3, tl.sum(taken, axis=0))
        _count(times + 2 * plane + at, taken, inside)
    tl.store(place + at, found.to(tl.int32), mask=inside)


@triton.jit
def _tell_attending(attends, looked, rest, looking, first, inside):
    """Rows of those that attend, from `first`: who looks has the same place (`looked`), the `rest` come behind."""
    asked = tl.where(rest > 0, looking + tl.cumsum(rest, axis=0) - 1, looked)
    tl.store(attends, tl.where(asked >= 0, first + asked, -1), mask=inside)


@triton.jit
def _count(at, what, inside):
    """One is added, and nobody waits for what there was."""
    tl.atomic_add(at, what.to(tl.float32), mask=inside, sem="relaxed")


@triton.jit
def _count_looking(times, plane, taken, looks, rest, inside):
    """New keys and values, looks, columns of those that only attend, and output projections."""
    _count(times, taken, inside)
    _count(times + plane, taken + looks, inside)
    _count(times + 3 * plane, rest.to(tl.float32) * 0.5, inside)
    _count(times + 4 * plane, rest + taken + looks, inside)
