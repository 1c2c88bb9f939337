"""Triton kernels of vision steps over references in 8 bits: who changed, whose turn it is to look, and their norms.

Imported only where Triton is there; `coded` launches them, and the plain form of STC-Cacher says what they must equal.
"""

import triton
import triton.language as tl

from onlooker.kernels._parts_triton import load_row, norm_of, store_row
from onlooker.kernels._vision_triton import behind


@triton.jit
def _steps(apart, scale, stream, tokens, unit, units, STEPS: tl.constexpr, GROUP: tl.constexpr):
    """How far units are from their references, in steps; -1 for units that are not there."""
    there = unit < units
    at = apart + stream * tokens + unit * GROUP
    change = tl.load(at, mask=there, other=0.0) / scale
    for member in tl.static_range(1, GROUP):  # pyright: ignore[reportGeneralTypeIssues]
        change += tl.load(at + member, mask=there, other=0.0) / scale
    steps = tl.minimum(change / GROUP * STEPS + 0.5, 1073741824.0).to(tl.int32)
    return tl.where(there, steps, -1)


@triton.jit(do_not_specialize=["layer"])
def select(
    apart,
    length,
    taus,
    dues,
    phases,
    flat,
    place,
    turn_state,
    tokens,
    units,
    count,
    room,
    layer,
    streams,
    EARLY: tl.constexpr,
    TURN: tl.constexpr,
    PINNED: tl.constexpr,
    AGES: tl.constexpr,
    STEPS: tl.constexpr,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The `count` units that changed most, of those that changed enough, in the first rows of each stream's `room`;
    TURN: behind them those whose turn it is to look. A program gives PART units their rank by counting. Rows hold valid
    tokens in any case; `place` says which of them count."""
    behind(EARLY)
    stream = tl.program_id(0).to(tl.int64)
    lengths = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, tokens, BLOCK):
        other = start + tl.arange(0, BLOCK)
        lengths += tl.load(length + stream * tokens + other, mask=other < tokens, other=0.0)
    scale = tl.maximum(tl.sum(lengths, axis=0) / tokens, 1e-12)
    address = tl.load(taus + stream)
    tau = tl.load(address.to(tl.pointer_type(tl.float32)), mask=address != 0, other=0.0)
    limit = (tau * STEPS + 0.5).to(tl.int32)
    own = tl.program_id(1) * PART + tl.arange(0, PART)
    there = own < units
    mine = _steps(apart, scale, stream, tokens, own, units, STEPS, GROUP)
    before = tl.full((PART, BLOCK), 0, tl.int32)
    changed = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, units, BLOCK):
        other = start + tl.arange(0, BLOCK)
        theirs = _steps(apart, scale, stream, tokens, other, units, STEPS, GROUP)
        tied = (theirs[None, :] == mine[:, None]) & (other[None, :] < own[:, None])
        before += ((theirs[None, :] > mine[:, None]) | tied).to(tl.int32)
        changed += (theirs > limit).to(tl.int32)
    rank = tl.sum(before, axis=1)
    has_row = there & (rank < count)
    taken = has_row & (mine > limit)
    member = tl.arange(0, GROUP)[None, :]
    token = own[:, None] * GROUP + member
    row = stream * room + tl.expand_dims(rank, 1) * GROUP + member
    tl.store(flat + row, stream * tokens + token, mask=has_row[:, None] & (member >= 0))
    found = tl.where(taken[:, None] & (member >= 0), row, -1)
    if TURN:
        address = tl.load(dues + stream)
        due = tl.load(address.to(tl.pointer_type(tl.int32)) + layer, mask=address != 0, other=0)
        address = tl.load(phases + stream)
        phase = tl.load(address.to(tl.pointer_type(tl.int32)) + layer, mask=address != 0, other=0)
        due = tl.where(tl.sum(changed, axis=0) > 0, AGES, due)  # pyright: ignore[reportOperatorIssue] - no tuples here
        going = (due > 0).to(tl.int32)
        first = (AGES - phase % AGES) % AGES
        leading = own < PINNED
        in_turn = there & (leading | ((own + phase) % AGES == 0))
        number = tl.where(leading, own, PINNED + (own - first) // AGES)
        turn_row = stream * room + (count + number)[:, None] * GROUP + member
        tl.store(flat + turn_row, stream * tokens + token, mask=in_turn[:, None] & (member >= 0))
        looks = in_turn & (own * 0 + going > 0) & (taken == 0)
        found = tl.where(looks[:, None] & (member >= 0), turn_row, found)
        if tl.program_id(1) == 0:
            tl.store(turn_state + stream, going)
            tl.store(turn_state + streams + stream, due - going)
            tl.store(turn_state + 2 * streams + stream, (phase + going) % AGES)
    tl.store(place + stream * tokens + token, found.to(tl.int32), mask=there[:, None] & (member >= 0))


@triton.jit
def norm_rows(
    x,
    flat,
    weight,
    bias,
    normed,
    head,
    room,
    count,
    dim,
    eps,
    HEAD: tl.constexpr,
    RMS: tl.constexpr,
    EARLY: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
):
    """The norm of chosen rows; HEAD: that of the first `count` of every stream's `room` once more, side by side."""
    behind(EARLY)
    slot, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = stream * room + slot
    source = tl.load(flat + row).to(tl.int64)
    main, rest = load_row(x + source * dim, dim, MAIN, REST)
    main, rest = main.to(tl.float32), rest.to(tl.float32)
    main, rest = norm_of(main, rest, weight, bias, dim, eps, normed.dtype.element_ty, RMS, MAIN, REST)
    store_row(normed + row * dim, main, rest, dim, MAIN, REST)
    if HEAD:  # noqa: SIM102 - one condition is known when this is compiled, the other is not
        if slot < count:
            store_row(head + (stream * count + slot) * dim, main, rest, dim, MAIN, REST)
