"""Triton kernels of packed attention: store new rows, attend over two pieces, join splits, and count where it looked.

Legend: T packed tokens, S segments, Hq query heads, H key-value heads, G = Hq / H, D head dimension, M rows of queries
and N keys of one tile. Query heads that share a key-value head are extra rows of a tile: row r is token r // G, head
r % G. Imported only where Triton is there; layout of the tables in `packed_attention`.
"""

import triton
import triton.language as tl

from onlooker.kernels._coded_rows_triton import tile_keys, tile_values

COLUMNS = tl.constexpr(32)
TILE_COLUMNS = tl.constexpr(6)


@triton.jit(do_not_specialize=["layer"])
def store_rows(
    queries,
    keys,
    values,
    cos,
    sin,
    table,
    tokens,
    layer,
    query_head_stride,
    query_token_stride,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    H: tl.constexpr,
    H_CEIL: tl.constexpr,
    HQ: tl.constexpr,
    HQ_CEIL: tl.constexpr,
    D: tl.constexpr,
    ASKED: tl.constexpr,
):
    """Write each new token's rotated key, value and (for a chunk) raw key to its own row, and of the newest, where
    somebody asks (`ASKED`: it may be), the rotated queries. Grid (T,)."""
    token = tl.program_id(0)
    segment = tl.load(tokens + token)
    if segment < 0:
        return
    facts = table + segment * COLUMNS
    row = token - tl.load(facts + 11) + tl.load(facts + 10)
    element = keys.dtype.element_ty
    layer_stride = tl.load(facts + 8)
    head_stride = tl.load(facts + 9)
    heads, dims = tl.arange(0, H_CEIL)[:, None], tl.arange(0, D)[None, :]
    real = heads < H
    at = heads * key_head_stride + token.to(tl.int64) * key_token_stride
    plain = tl.load(keys + at + dims, mask=real, other=0.0)
    other = tl.load(keys + at + (dims + D // 2) % D, mask=real, other=0.0).to(tl.float32)
    sign = tl.where(dims < D // 2, -1.0, 1.0)
    angle = token * D + dims
    turned = plain.to(tl.float32) * tl.load(cos + angle) + sign * other * tl.load(sin + angle)
    value = tl.load(
        values + heads * value_head_stride + token.to(tl.int64) * value_token_stride + dims, mask=real, other=0.0
    )
    to = layer * layer_stride + heads * head_stride + row * D + dims
    tl.store(tl.load(facts + 5).to(tl.pointer_type(element)) + to, turned.to(element), mask=real)
    tl.store(tl.load(facts + 6).to(tl.pointer_type(element)) + to, value, mask=real)
    raw = tl.load(facts + 7)
    if raw != 0:
        to_raw = layer * tl.load(facts + 18) + heads * tl.load(facts + 19) + row * D + dims
        tl.store(raw.to(tl.pointer_type(element)) + to_raw, plain, mask=real)
    if ASKED:
        asked = tl.load(facts + 22)
        first = tl.load(facts + 25)
        if (asked != 0) & (row >= first):
            head = tl.arange(0, HQ_CEIL)
            looks = _turned_queries(
                queries, cos, sin, head * 0 + token, head, head < HQ, query_head_stride, query_token_stride, D
            )
            to_asked = layer * tl.load(facts + 23) + head[:, None] * tl.load(facts + 24) + (row - first) * D + dims
            tl.store(asked.to(tl.pointer_type(element)) + to_asked, looks, mask=head[:, None] < HQ)


@triton.jit
def _turned_queries(queries, cos, sin, token, head, real, head_stride, token_stride, D: tl.constexpr):
    """Rotated queries of rows (token, head), in the queries' own format, `[rows, D]`."""
    dims = tl.arange(0, D)[None, :]
    at = head.to(tl.int64) * head_stride + token.to(tl.int64) * token_stride
    plain = tl.load(queries + at[:, None] + dims, mask=real[:, None], other=0.0).to(tl.float32)
    other = tl.load(queries + at[:, None] + (dims + D // 2) % D, mask=real[:, None], other=0.0).to(tl.float32)
    sign = tl.where(dims < D // 2, -1.0, 1.0)
    angle = token[:, None] * D + dims
    cosines = tl.load(cos + angle, mask=real[:, None], other=0.0)
    sines = tl.load(sin + angle, mask=real[:, None], other=0.0)
    return (plain * cosines + sign * other * sines).to(queries.dtype.element_ty)


@triton.jit
def _taken_in(products, scale, v, peak, total, acc, PRECISION: tl.constexpr):
    """The running softmax with one more tile: products of queries and keys `[M, N]`, which `scale` makes logits, and
    values `[N, D]`. The peak is one of products: a loop over many keys waits for its sums beside the matrix units, and
    so every number is multiplied and added to once, in one instruction."""
    higher = tl.maximum(peak, tl.max(products, 1))
    weights = tl.exp2(products * scale - (higher * scale)[:, None])
    shrink = tl.exp2((peak - higher) * scale)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return higher, total, acc


@triton.jit
def _over_rows(
    q, keys, values, begin, end, rows, scale, peak, total, acc, D: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The running softmax with tiles `[begin, end)` of rows that every query sees. Whole tiles need no masks, which
    took a part of a loop's time; the last one may end early."""
    columns, dims = tl.arange(0, N), tl.arange(0, D)
    whole = tl.minimum(end, rows // N)
    for number in range(begin, whole):
        at = number * N + columns
        k = tl.load(keys + at[None, :] * D + dims[:, None])
        products = tl.dot(q, k, input_precision=PRECISION)
        v = tl.load(values + at[:, None] * D + dims[None, :])
        peak, total, acc = _taken_in(products, scale, v, peak, total, acc, PRECISION)
    for number in range(tl.maximum(begin, whole), end):
        at = number * N + columns
        there = at < rows
        k = tl.load(keys + at[None, :] * D + dims[:, None], mask=there[None, :], other=0.0)
        products = tl.dot(q, k, input_precision=PRECISION)
        products = tl.where(there[None, :], products, float("-inf"))
        v = tl.load(values + at[:, None] * D + dims[None, :], mask=there[:, None], other=0.0)
        peak, total, acc = _taken_in(products, scale, v, peak, total, acc, PRECISION)
    return peak, total, acc


@triton.jit
def _over_codes(
    q, facts, plain, at_plain, rows, begin, end, layer, layers, kv_head, room, scale, peak, total, acc,
    element: tl.constexpr, H: tl.constexpr, D: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """As `_over_rows`, of rows in codes: from where this layer's are laid out, or else tile by tile."""
    if at_plain >= 0:
        keys = plain + (kv_head * room + at_plain) * D
        values = keys + tl.cast(H, tl.int64) * room * D
        peak, total, acc = _over_rows(q, keys, values, begin, end, rows, scale, peak, total, acc, D, N, PRECISION)
    else:
        tiles, lanes = tl.load(facts + 26).to(tl.pointer_type(tl.int64)), tl.arange(0, TILE)
        for number in range(begin, end):
            one = tiles + number * TILE_COLUMNS
            k = tile_keys(one, layer, layers, kv_head, lanes, element, H, D, KIND, GROUP)
            products = tl.dot(q, k, input_precision=PRECISION)
            products = tl.where((lanes < tl.load(one + 3))[None, :], products, float("-inf"))
            v = tile_values(one, layer, layers, kv_head, lanes, element, H, D, KIND, GROUP)
            peak, total, acc = _taken_in(products, scale, v, peak, total, acc, PRECISION)
    return peak, total, acc


@triton.jit
def _over_own(
    q, keys, values, begin, end, last_own, last_seen, scale, peak, total, acc, D: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """As `_over_rows`, of rows of which each query sees those up to its own."""
    columns, dims = tl.arange(0, N), tl.arange(0, D)
    for number in range(begin, end):
        at = number * N + columns
        there = at < last_seen
        k = tl.load(keys + at[None, :] * D + dims[:, None], mask=there[None, :], other=0.0)
        products = tl.dot(q, k, input_precision=PRECISION)
        seen = (at[None, :] <= last_own[:, None]) & there[None, :]
        products = tl.where(seen, products, float("-inf"))
        v = tl.load(values + at[:, None] * D + dims[None, :], mask=there[:, None], other=0.0)
        peak, total, acc = _taken_in(products, scale, v, peak, total, acc, PRECISION)
    return peak, total, acc


@triton.jit
def _rows_at(addresses, strides, layer, kv_head, like):
    """Where one layer's and head's keys and values begin, in the format of `like`. The hints let loads be sixteen
    bytes wide: pointers from a table carry no promise of their own."""
    at = tl.multiple_of(layer * tl.load(strides) + kv_head * tl.load(strides + 1), 16)
    keys = tl.multiple_of(tl.load(addresses).to(tl.pointer_type(like.dtype.element_ty)) + at, 16)
    values = tl.multiple_of(tl.load(addresses + 1).to(tl.pointer_type(like.dtype.element_ty)) + at, 16)
    return keys, values


@triton.jit(do_not_specialize=["layer", "room"])
def attend_rows(
    queries, cos, sin, table, blocks, out, lse, split_out, split_lse, plain, layer, num_tokens, head_stride,
    token_stride, scale, layers, room, HQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one key-value head over (a share of) its past and own rows. Grid (tiles, H, SPLITS).

    `scale` includes log2(e): weights are powers of two. With SPLITS > 1 the result is a part, for `join_splits`. KIND
    says how rows of the past lie that lie in codes (-1: nobody has any), in tiles of at most TILE rows; those of some
    segments lie in `plain` as well, `[2, H, room, D]`, where `decode_tiles` laid this layer's.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    segment = tl.load(blocks + tile)
    if segment < 0:
        return
    facts = table + segment * COLUMNS
    first_row = (tile - tl.load(facts + 20).to(tl.int32)) * M
    past_rows, own_before = tl.load(facts + 4).to(tl.int32), tl.load(facts + 10).to(tl.int32)
    counts = tl.load(facts + 16)  # each layer and head may see as many rows of its past as it chose
    chosen = counts.to(tl.pointer_type(tl.int32)) + layer * (HQ // G) + kv_head
    past_rows = tl.load(chosen, mask=counts != 0, other=past_rows)
    first_token, count = tl.load(facts + 11).to(tl.int32), tl.load(facts + 12).to(tl.int32)
    element = queries.dtype.element_ty

    rows = first_row + tl.arange(0, M)
    place = rows // G
    real = place < count
    token, head = first_token + place, kv_head * G + rows % G
    q = _turned_queries(queries, cos, sin, token, head, real, head_stride, token_stride, D)

    past_keys, past_values = _rows_at(facts, facts + 2, layer, kv_head, queries)
    own_keys, own_values = _rows_at(facts + 5, facts + 8, layer, kv_head, queries)
    past_tiles = tl.cdiv(past_rows, N)
    least = tl.load(facts + 21).to(tl.int32) - 1  # the last of its tokens that all of them see: where not causal, any
    last_token = tl.minimum((first_row + M - 1) // G, count - 1)
    last_seen = own_before + tl.maximum(last_token, least) + 1
    last_own = own_before + tl.maximum(place, least)
    coded_tiles = 0
    if KIND >= 0:
        at_plain, coded_rows = tl.load(facts + 30), tl.load(facts + 28).to(tl.int32)
        coded_tiles = tl.where(at_plain < 0, tl.load(facts + 27).to(tl.int32), tl.cdiv(coded_rows, N))
    all_tiles = past_tiles + coded_tiles + tl.cdiv(last_seen, N)
    share = tl.cdiv(all_tiles, SPLITS)
    begin = split * share
    end = tl.minimum(begin + share, all_tiles)

    dims = tl.arange(0, D)
    peak = tl.full([M], -1.0e30, dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)
    acc = tl.zeros([M, D], dtype=tl.float32)
    peak, total, acc = _over_rows(
        q, past_keys, past_values, begin, tl.minimum(end, past_tiles), past_rows, scale, peak, total, acc, D, N,
        PRECISION,
    )  # fmt: skip
    if KIND >= 0:
        first, last = tl.maximum(begin, past_tiles) - past_tiles, tl.minimum(end, past_tiles + coded_tiles) - past_tiles
        peak, total, acc = _over_codes(
            q, facts, plain, at_plain, coded_rows, first, last, layer, layers, kv_head, room, scale, peak, total, acc,
            element, HQ // G, D, N, PRECISION, KIND, GROUP, TILE,
        )  # fmt: skip
    past_tiles += coded_tiles
    peak, total, acc = _over_own(
        q, own_keys, own_values, tl.maximum(begin, past_tiles) - past_tiles, end - past_tiles, last_own, last_seen,
        scale, peak, total, acc, D, N, PRECISION,
    )  # fmt: skip

    # A share without any tile has nothing to say: total 0, and its logarithm is minus infinity.
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    mass = tl.where(total > 0, peak * scale + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    flat = token.to(tl.int64) * HQ + head
    if SPLITS == 1:
        tl.store(out + flat[:, None] * D + dims[None, :], result.to(element), mask=real[:, None])
        tl.store(lse + flat, mass, mask=real)
    else:
        part = split.to(tl.int64) * num_tokens * HQ + flat
        tl.store(split_out + part[:, None] * D + dims[None, :], result, mask=real[:, None])
        tl.store(split_lse + part, mass, mask=real)


@triton.jit
def join_splits(
    split_out, split_lse, tokens, out, lse, num_tokens, HQ: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr
):
    """The whole of what the shares of one token and head found. Grid (T, Hq)."""
    token, head = tl.program_id(0), tl.program_id(1)
    if tl.load(tokens + token) < 0:
        return
    flat = token.to(tl.int64) * HQ + head
    part = tl.arange(0, SPLITS).to(tl.int64) * num_tokens * HQ + flat
    masses = tl.load(split_lse + part)
    peak = tl.max(masses, 0)
    weights = tl.exp2(masses - peak)
    total = tl.sum(weights, 0)
    dims = tl.arange(0, D)
    parts = tl.load(split_out + part[:, None] * D + dims[None, :])
    result = tl.sum(parts * weights[:, None], 0) / total  # pyright: ignore[reportOperatorIssue] - no tuples here
    tl.store(out + flat * D + dims, result.to(out.dtype.element_ty))
    tl.store(lse + flat, peak + tl.log2(total))


@triton.jit(do_not_specialize=["layer"])
def note_looks(
    queries, cos, sin, table, lse, layer, head_stride, token_stride, scale, segments, HQ: tl.constexpr,
    G: tl.constexpr, G_CEIL: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SHARES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a segment's last query's weights on its past and its first own rows to its ledger: averaged over heads, or
    for every key-value head apart, where each sees other rows. Grid (a few, SHARES): the first shares out the segments
    that ask, most of which do not."""
    slot, share = tl.program_id(0), tl.program_id(1)
    segment = tl.load(table + slot * COLUMNS + 31) - 1
    while segment >= 0:
        facts = table + segment * COLUMNS
        past_rows, own_rows = tl.load(facts + 4).to(tl.int32), tl.load(facts + 15).to(tl.int32)
        token = (tl.load(facts + 11) + tl.load(facts + 12) - 1).to(tl.int32)
        element = queries.dtype.element_ty
        ledger = tl.load(facts + 13).to(tl.pointer_type(tl.float32)) + layer * tl.load(facts + 14)
        past_keys = tl.multiple_of((tl.load(facts + 0)).to(tl.pointer_type(element)), 16)
        own_keys = tl.multiple_of((tl.load(facts + 5)).to(tl.pointer_type(element)), 16)
        counts, apart = tl.load(facts + 16), tl.load(facts + 17)
        past_tiles = tl.cdiv(past_rows, N)
        group, columns, dims = tl.arange(0, G_CEIL), tl.arange(0, N), tl.arange(0, D)
        real = group < G
        tokens = token + tl.zeros([G_CEIL], dtype=tl.int32)
        behind = past_rows + tl.load(facts + 28).to(tl.int32)  # rows in codes lie between
        for number in range(share, past_tiles + tl.cdiv(own_rows, N), SHARES):
            is_past = number < past_tiles
            at = tl.where(is_past, number, number - past_tiles) * N + columns
            there = at < tl.where(is_past, past_rows, own_rows)
            keys = tl.where(is_past, past_keys, own_keys)
            layer_part = layer * tl.load(facts + tl.where(is_past, 2, 8))
            head_part = tl.load(facts + tl.where(is_past, 3, 9))
            looks = tl.zeros([N], dtype=tl.float32)
            for kv_head in range(HQ // G):
                head = kv_head * G + group
                q = _turned_queries(queries, cos, sin, tokens, head, real, head_stride, token_stride, D)
                from_row = tl.multiple_of(layer_part + kv_head * head_part, 16)
                k = tl.load(keys + from_row + at[None, :] * D + dims[:, None], mask=there[None, :], other=0.0)
                logits = tl.dot(q, k, input_precision=PRECISION) * scale
                mass = tl.load(lse + token.to(tl.int64) * HQ + head, mask=real, other=0.0)
                weights = tl.where(real[:, None], tl.exp2(logits - mass[:, None]), 0.0)
                chosen = counts.to(tl.pointer_type(tl.int32)) + layer * (HQ // G) + kv_head
                seen = tl.load(chosen, mask=counts != 0, other=past_rows)
                own = tl.where(at < tl.where(is_past, seen, own_rows), tl.sum(weights, 0), 0.0)
                looks += own
                if apart != 0:
                    noted = ledger + kv_head * apart + tl.where(is_past, 0, behind) + at
                    before = tl.load(noted, mask=there, other=0.0)
                    tl.store(noted, before + own / HQ, mask=there)
            if apart == 0:
                noted = ledger + tl.where(is_past, 0, behind) + at
                before = tl.load(noted, mask=there, other=0.0)
                tl.store(noted, before + looks / HQ, mask=there)
        slot += tl.num_programs(0)
        segment = tl.load(table + slot * COLUMNS + 31, mask=slot < segments, other=0) - 1


@triton.jit(do_not_specialize=["layer"])
def note_looks_at_codes(
    queries,
    cos,
    sin,
    table,
    lse,
    layer,
    head_stride,
    token_stride,
    scale,
    layers,
    HQ: tl.constexpr,
    G: tl.constexpr,
    G_CEIL: tl.constexpr,
    D: tl.constexpr,
    SHARES: tl.constexpr,
    PRECISION: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """As `note_looks`, averaged over heads, of the rows that lie in codes. Grid (S, SHARES)."""
    segment, share = tl.program_id(0), tl.program_id(1)
    facts = table + segment * COLUMNS
    ledger_at = tl.load(facts + 13)
    if ledger_at == 0:
        return
    token = (tl.load(facts + 11) + tl.load(facts + 12) - 1).to(tl.int32)
    element = queries.dtype.element_ty
    past_rows = tl.load(facts + 4)
    ledger = ledger_at.to(tl.pointer_type(tl.float32)) + layer * tl.load(facts + 14)
    group, lanes = tl.arange(0, G_CEIL), tl.arange(0, TILE)
    real = group < G
    tokens = token + tl.zeros([G_CEIL], dtype=tl.int32)
    tiles = tl.load(facts + 26).to(tl.pointer_type(tl.int64))
    for number in range(share, tl.load(facts + 27).to(tl.int32), SHARES):
        one = tiles + number * TILE_COLUMNS
        there = lanes < tl.load(one + 3)
        noted = ledger + past_rows + (tl.load(one + 5) - tl.load(facts + 29)) + lanes
        looks = tl.zeros([TILE], dtype=tl.float32)
        for kv_head in range(HQ // G):
            head = kv_head * G + group
            q = _turned_queries(queries, cos, sin, tokens, head, real, head_stride, token_stride, D)
            k = tile_keys(one, layer, layers, kv_head, lanes, element, HQ // G, D, KIND, GROUP)
            logits = tl.dot(q, k, input_precision=PRECISION) * scale
            mass = tl.load(lse + token.to(tl.int64) * HQ + head, mask=real, other=0.0)
            looks += tl.sum(tl.where(real[:, None], tl.exp2(logits - mass[:, None]), 0.0), 0)
        before = tl.load(noted, mask=there, other=0.0)
        tl.store(noted, before + looks / HQ, mask=there)
