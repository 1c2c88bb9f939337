"""Triton kernels of keys and values in codes: encode a block, and read a tile of one while attending.

Legend: L layers, H key-value heads, n tokens of a block, D head dimension, N rows of a tile. KIND: 0 is int8, 1 int4,
2 fp8 (`coded_rows.KINDS`). A block is one piece of memory, part behind part, each padded to 16 bytes: of int8 and int4
codes, steps and smallest numbers of the keys, then of the values; of fp8 codes and scales of the keys, then of the
values. Imported only where Triton is there; codecs say in plain PyTorch what each must equal.
"""

import triton
import triton.language as tl

COLUMNS = tl.constexpr(6)
SEGMENT_COLUMNS = tl.constexpr(32)
"""Of the table of segments, see `packed_attention`."""
LARGEST = tl.constexpr(65504.0)
NEAREST = tl.constexpr(12582912.0)
"""Added and taken away again, it rounds float32 numbers below 2^22 to whole ones, ties to even."""
WIDEST = tl.constexpr(448.0)
"""The largest E4M3 number."""


@triton.jit
def _padded(size):
    return (size + 15) // 16 * 16


@triton.jit
def _code_bytes(tokens, layers, H: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr):
    return _padded(layers * H * tokens * (D // 2 if KIND == 1 else D))


@triton.jit
def _values_at(tokens, groups, layers, H: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr):
    """Where the values of a block begin."""
    at = _code_bytes(tokens, layers, H, D, KIND)
    if KIND == 2:
        at += _padded(layers * H * tokens * 4)
    else:
        at += 2 * _padded(layers * H * groups * D * 2)
    return at


@triton.jit
def _codes(codes, rows, dims, there, D: tl.constexpr, KIND: tl.constexpr):
    """Codes of rows and dims (of which one is a column and one a row of numbers), as float32."""
    if KIND == 1:
        packed = tl.load(codes + rows * (D // 2) + dims % (D // 2), mask=there, other=0)
        numbers = ((packed >> (4 * (dims // (D // 2))).to(tl.uint8)) & 15).to(tl.float32)
    elif KIND == 2:
        packed = tl.load(codes + rows * D + dims, mask=there, other=0)
        numbers = packed.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        numbers = tl.load(codes + rows * D + dims, mask=there, other=0).to(tl.float32)
    return numbers


@triton.jit
def tile_keys(
    tile, layer, layers, head, columns, element: tl.constexpr, H: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Keys of a tile, `[D, N]`; what lies behind its rows is finite and of no meaning."""
    tokens, first, count = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    block = tl.multiple_of(tl.load(tile).to(tl.pointer_type(tl.uint8)), 16)
    dims = tl.arange(0, D)
    place = (layer * H + head).to(tl.int64)
    there = columns < count
    rows = place * tokens + first + columns
    codes = _codes(block, rows[None, :], dims[:, None], there[None, :], D, KIND)
    scales = block + _code_bytes(tokens, layers, H, D, KIND)
    if KIND == 2:
        scale = tl.load(scales.to(tl.pointer_type(tl.float32)) + rows, mask=there, other=0.0)
        codes = codes * scale[None, :]
    else:
        groups = tl.cdiv(tokens, GROUP)
        at = (place * groups + tl.load(tile + 4)) * D + dims
        step = tl.load(scales.to(tl.pointer_type(tl.float16)) + at).to(tl.float32)
        lows = scales + _padded(layers * H * groups * D * 2)
        low = tl.load(lows.to(tl.pointer_type(tl.float16)) + at).to(tl.float32)
        codes = codes * step[:, None] + low[:, None]
    return codes.to(element)


@triton.jit
def tile_values(
    tile, layer, layers, head, columns, element: tl.constexpr, H: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Values of a tile, `[N, D]`; zero behind its rows."""
    tokens, first, count = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    block = tl.load(tile).to(tl.pointer_type(tl.uint8))
    codes_at = tl.multiple_of(block + _values_at(tokens, tl.cdiv(tokens, GROUP), layers, H, D, KIND), 16)
    dims = tl.arange(0, D)
    there = columns < count
    rows = (layer * H + head).to(tl.int64) * tokens + first + columns
    codes = _codes(codes_at, rows[:, None], dims[None, :], there[:, None], D, KIND)
    scales = codes_at + _code_bytes(tokens, layers, H, D, KIND)
    if KIND == 2:
        scale = tl.load(scales.to(tl.pointer_type(tl.float32)) + rows, mask=there, other=0.0)
        codes = codes * scale[:, None]
    else:
        step = tl.load(scales.to(tl.pointer_type(tl.float16)) + rows, mask=there, other=0.0).to(tl.float32)
        lows = scales + _padded(layers * H * tokens * 2)
        low = tl.load(lows.to(tl.pointer_type(tl.float16)) + rows, mask=there, other=0.0).to(tl.float32)
        codes = codes * step[:, None] + low[:, None]
    return codes.to(element)


@triton.jit
def _step(low, high, KIND: tl.constexpr):
    """Step from the smallest (float16, as it is kept) to the largest number."""
    span = tl.maximum(tl.minimum(tl.maximum(high, -LARGEST), LARGEST) - low, 0.0)
    step = span / (15.0 if KIND == 1 else 255.0) * (1.0 + 0.0009765625)
    return tl.minimum(step, LARGEST).to(tl.float16)


@triton.jit
def _nearest(numbers, step, low, KIND: tl.constexpr):
    whole = (numbers - low) / tl.maximum(step.to(tl.float32), 5.9604644775390625e-08)
    whole = tl.minimum(tl.maximum(whole, 0.0), 15.0 if KIND == 1 else 255.0)
    return (whole + NEAREST) - NEAREST


@triton.jit
def _store_codes(codes, rows, first, second, there, D: tl.constexpr, KIND: tl.constexpr):
    """Codes of both halves of the channels, `[N, D / 2]` each."""
    half = tl.arange(0, D // 2)[None, :]
    mask = there[:, None]
    if KIND == 1:
        packed = first.to(tl.int32) | (second.to(tl.int32) << 4)
        tl.store(codes + rows[:, None] * (D // 2) + half, packed.to(tl.uint8), mask=mask)
    else:
        tl.store(codes + rows[:, None] * D + half, first.to(tl.int32).to(tl.uint8), mask=mask)
        tl.store(codes + rows[:, None] * D + D // 2 + half, second.to(tl.int32).to(tl.uint8), mask=mask)


@triton.jit
def _to_eight_bits(numbers, scale):
    """The nearest E4M3 numbers as bytes. Rounded here: Triton's interpreter, which tests this, loses the carry."""
    inside = tl.minimum(tl.maximum(numbers / scale[:, None], -WIDEST), WIDEST)
    exponent = (inside.to(tl.int32, bitcast=True) >> 23) & 255
    quantum = ((tl.maximum(exponent, 121) - 3) << 23).to(tl.float32, bitcast=True)
    whole = (inside / quantum + NEAREST) - NEAREST
    return (whole * quantum).to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def _encode_float(part, rows, first, second, there, total, D: tl.constexpr):
    """E4M3 numbers and a scale a row."""
    most = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
    scale = tl.maximum(most, 1e-12) / WIDEST
    half = tl.arange(0, D // 2)[None, :]
    mask = there[:, None]
    tl.store(part + rows[:, None] * D + half, _to_eight_bits(first, scale), mask=mask)
    tl.store(part + rows[:, None] * D + D // 2 + half, _to_eight_bits(second, scale), mask=mask)
    scales = (part + _padded(total * D)).to(tl.pointer_type(tl.float32))
    tl.store(scales + rows, scale, mask=there)


@triton.jit(do_not_specialize=["tokens", "slot", "before", "address"])
def encode_block(
    keys, values, block, table, layer_stride, head_stride, tokens, layers, slot, before, address,
    H: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One group of tokens of one layer and head. Grid (L * H, groups)."""
    place, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    layer, head = place // H, place % H
    groups = tl.cdiv(tokens, GROUP)
    size = tl.cdiv(tokens, groups)
    first = group * size
    count = tl.minimum(size, tokens - first)
    if place == 0:
        entry = table + (slot + group) * COLUMNS
        tl.store(entry, tl.cast(address, tl.int64))
        tl.store(entry + 1, tl.cast(tokens, tl.int64))
        tl.store(entry + 2, first.to(tl.int64))
        tl.store(entry + 3, count.to(tl.int64))
        tl.store(entry + 4, group.to(tl.int64))
        tl.store(entry + 5, (before + first).to(tl.int64))
    columns, half = tl.arange(0, N), tl.arange(0, D // 2)
    there = columns < count
    rows = place * tokens + first + columns
    at = layer * layer_stride + head * head_stride + (first + columns)[:, None] * D + half[None, :]
    mask = there[:, None]
    k0 = tl.load(keys + at, mask=mask, other=0.0).to(tl.float32)
    k1 = tl.load(keys + at + D // 2, mask=mask, other=0.0).to(tl.float32)
    v0 = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
    v1 = tl.load(values + at + D // 2, mask=mask, other=0.0).to(tl.float32)
    value_part = block + _values_at(tokens, groups, layers, H, D, KIND)
    if KIND == 2:
        _encode_float(block, rows, k0, k1, there, layers * H * tokens, D)
        _encode_float(value_part, rows, v0, v1, there, layers * H * tokens, D)
    else:
        steps = (block + _code_bytes(tokens, layers, H, D, KIND)).to(tl.pointer_type(tl.float16))
        lows = (block + _code_bytes(tokens, layers, H, D, KIND) + _padded(layers * H * groups * D * 2)).to(
            tl.pointer_type(tl.float16)
        )
        channel = (place * groups + group) * D + half
        low0 = tl.min(tl.where(mask, k0, float("inf")), 0)
        low1 = tl.min(tl.where(mask, k1, float("inf")), 0)
        low0 = tl.minimum(tl.maximum(low0, -LARGEST), LARGEST).to(tl.float16)
        low1 = tl.minimum(tl.maximum(low1, -LARGEST), LARGEST).to(tl.float16)
        step0 = _step(low0.to(tl.float32), tl.max(tl.where(mask, k0, float("-inf")), 0), KIND)
        step1 = _step(low1.to(tl.float32), tl.max(tl.where(mask, k1, float("-inf")), 0), KIND)
        tl.store(steps + channel, step0)
        tl.store(steps + channel + D // 2, step1)
        tl.store(lows + channel, low0)
        tl.store(lows + channel + D // 2, low1)
        k0 = _nearest(k0, step0[None, :], low0.to(tl.float32)[None, :], KIND)
        k1 = _nearest(k1, step1[None, :], low1.to(tl.float32)[None, :], KIND)
        _store_codes(block, rows, k0, k1, there, D, KIND)
        low = tl.minimum(tl.min(v0, 1), tl.min(v1, 1))
        low = tl.minimum(tl.maximum(low, -LARGEST), LARGEST).to(tl.float16)
        step = _step(low.to(tl.float32), tl.maximum(tl.max(v0, 1), tl.max(v1, 1)), KIND)
        v0 = _nearest(v0, step[:, None], low.to(tl.float32)[:, None], KIND)
        v1 = _nearest(v1, step[:, None], low.to(tl.float32)[:, None], KIND)
        _store_codes(value_part, rows, v0, v1, there, D, KIND)
        scales = value_part + _code_bytes(tokens, layers, H, D, KIND)
        tl.store(scales.to(tl.pointer_type(tl.float16)) + rows, step, mask=there)
        tl.store((scales + _padded(layers * H * tokens * 2)).to(tl.pointer_type(tl.float16)) + rows, low, mask=there)


@triton.jit(do_not_specialize=["layer", "room"])
def decode_tiles(
    table, plain, layer, layers, room, H: tl.constexpr, D: tl.constexpr, SHARES: tl.constexpr, KIND: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One layer of rows in codes, of segments that more than one tile of queries reads, into `plain`, `[2, H, room,
    D]`. Grid (S, H, SHARES)."""
    segment, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    facts = table + segment * SEGMENT_COLUMNS
    to = tl.load(facts + 30)
    if to < 0:
        return
    tiles, before = tl.load(facts + 26).to(tl.pointer_type(tl.int64)), tl.load(facts + 29)
    lanes, dims = tl.arange(0, TILE), tl.arange(0, D)
    keys = plain + (head * room + to) * D
    values = keys + tl.cast(H, tl.int64) * room * D
    for number in range(share, tl.load(facts + 27).to(tl.int32), SHARES):
        one = tiles + number * COLUMNS
        at = (tl.load(one + 5) - before) + lanes
        there = lanes < tl.load(one + 3)
        k = tile_keys(one, layer, layers, head, lanes, plain.dtype.element_ty, H, D, KIND, GROUP)
        tl.store(keys + at[None, :] * D + dims[:, None], k, mask=there[None, :])
        v = tile_values(one, layer, layers, head, lanes, plain.dtype.element_ty, H, D, KIND, GROUP)
        tl.store(values + at[:, None] * D + dims[None, :], v, mask=there[:, None])
