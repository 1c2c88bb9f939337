"""Triton kernels of the corrected Cacher's attention: what all tokens ask for and see, of fresh and of kept rows.

Imported only where Triton is there; `corrected` launches them, and the plain form of `stc_corrected` says what they
must equal. References in 8 and 4 bits are read and written where each stream keeps them.
"""

# Types and numbers are constants where a kernel calls another, and sums are no tuples.
# pyright: reportArgumentType=false, reportOperatorIssue=false

import triton
import triton.language as tl

from onlooker.kernels._parts_triton import ROUND, in_4, in_8, load_packed, load_row, store_packed, store_row
from onlooker.kernels._vision_triton import behind


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
def _fill(
    fresh, new, codes, scale, to, dim, AS_IS: tl.constexpr, NARROW: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """One row of a kind goes to `to` as it is kept, a fresh one is kept first; AS_IS: a fresh one goes as it is."""
    if new:
        main, rest = load_row(fresh, dim, MAIN, REST)
        if AS_IS:
            store_row(to, main, rest, dim, MAIN, REST)
        main, rest = main.to(tl.float32), rest.to(tl.float32)
        if NARROW:
            main, rest, wide = in_4(main, rest)
            store_packed(codes, main, rest, dim, MAIN, REST)
        else:
            main, rest, wide = in_8(main, rest)
            store_row(codes, main, rest, dim, MAIN, REST)
        now = wide.to(tl.float16)
        tl.store(scale, now)
        if AS_IS == 0:
            store_row(to, main * now.to(tl.float32), rest * now.to(tl.float32), dim, MAIN, REST)
    else:
        held = tl.load(scale).to(tl.float32)
        if NARROW:
            main_kept, rest_kept = load_packed(codes, dim, MAIN, REST)
        else:
            main_kept, rest_kept = load_row(codes, dim, MAIN, REST)
        store_row(to, main_kept.to(tl.float32) * held, rest_kept.to(tl.float32) * held, dim, MAIN, REST)


@triton.jit(do_not_specialize=["layer"])
def fill_rows(
    fresh, looking, attends, counts, queries, keys, values, scales, asked, filled, tokens, layer, layers, dim, room,
    plane, SOME: tl.constexpr, Q: tl.constexpr, K: tl.constexpr, V: tl.constexpr, EARLY: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Queries of all tokens of streams in which anything changed (SOME: of those with a row in `attends`), `asked`, and
    keys and values of all, `filled` (`[key or value, streams * tokens, dim]`). `fresh` are queries, values and keys of
    the rows that look, `[streams * room, 3 * dim]` (`looking`: which row a token has, -1: none). Their queries are
    kept, and serve as they are; keys and values of those that changed, which come first, are kept, and serve as they
    are kept. A program does one of the three. Q, K and V are places of scales among kinds."""
    behind(EARLY)
    token, stream, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    source = stream * tokens + token
    changed = tl.load(counts + stream * 4)
    at = tl.load(looking + source).to(tl.int64)
    ask = source
    if SOME:
        ask = tl.load(attends + source).to(tl.int64)
    row = (layer * tokens + token).to(tl.int64)
    query_at = bytes_at(queries, stream, tl.uint8, 16) + row * (dim // 2)
    key_at = bytes_at(keys, stream, tl.uint8, 16) + row * (dim // 2)
    value_at = bytes_at(values, stream, tl.int8, 16) + row * dim
    scale = bytes_at(scales, stream, tl.float16, 2) + layer * tokens + token
    if changed == 0:
        return
    each = layers * tokens
    fresh += at * 3 * dim
    to = filled + source * dim
    new = (at >= 0) & (at - stream * room < changed)
    if part == 0:
        if ask >= 0:
            _fill(fresh, at >= 0, query_at, scale + Q * each, asked + ask * dim, dim, True, True, MAIN, REST)
    elif part == 1:
        _fill(fresh + 2 * dim, new, key_at, scale + K * each, to, dim, False, True, MAIN, REST)
    else:
        _fill(fresh + dim, new, value_at, scale + V * each, to + plane, dim, False, False, MAIN, REST)
