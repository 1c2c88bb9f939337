"""Packed attention kernels against plain PyTorch, in Triton's interpreter: pasts, tails, splits, padding, ledgers."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.errors import InputError, ModelError
from onlooker.kernels.packed_attention import PassTables, RowAttention, SegmentRows, attend_plainly
from onlooker.kernels.tiles import Tiles, shared_out, tiles_for

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM = 2, 6, 2, 16
SCALE = HEAD_DIM**-0.5


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so the interpreted tests have a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(MIXES) * len(TILES) + 4} passed" in done.stdout, done.stdout[-300:]


def make_spec(dtype: torch.dtype = torch.float32, device: str = "cpu", head_dim: int = HEAD_DIM) -> ModelSpec:
    place = torch.device(device)
    return ModelSpec("rows", LAYERS, QUERY_HEADS, KV_HEADS, head_dim, 32, dtype, place, max_positions=4096)


def angles_of(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    frequencies = 100.0 ** (-torch.arange(dim // 2, device=positions.device) / dim * 2)
    angles = torch.cat([positions[0][:, None] * frequencies] * 2, dim=1).float()
    return angles.cos(), angles.sin()


def make_rows(
    spec: ModelSpec,
    past: int,
    before: int,
    count: int,
    seed: int,
    cited: bool,
    raw: bool,
    chosen: str = "",
    asked: int = 0,
) -> SegmentRows:
    """A segment whose rows lie in the middle of larger tensors, as they do in a store; unread rows are poisoned. With
    `chosen` every layer and head sees another number of past rows, and is noted apart ("heads") or not ("rows");
    or its new tokens all see each other ("together"). Of the last `asked` tokens the queries are kept."""
    generator = torch.Generator().manual_seed(seed)

    def slab(room: int, filled: int = 0) -> Tensor:
        whole = torch.full((LAYERS, KV_HEADS, room + 8, spec.head_dim), float("nan"))
        whole[:, :, 4 : 4 + filled] = torch.randn(LAYERS, KV_HEADS, filled, spec.head_dim, generator=generator)
        return whole.to(spec.device, spec.dtype)[:, :, 4 : 4 + room]

    counts = torch.randint(0, past + 1, (LAYERS, KV_HEADS), generator=generator, dtype=torch.int32)
    ledger = (LAYERS, KV_HEADS, past) if chosen == "heads" else (LAYERS, past)
    return SegmentRows(
        slab(past, past),
        slab(past, past),
        slab(before + count, before),
        slab(before + count, before),
        slab(before + count) if raw else None,
        before,
        torch.arange(count, device=spec.device)[None],
        past + before,
        counts.to(spec.device) if chosen in ("heads", "rows") else None,
        torch.zeros(ledger, device=spec.device) if cited else None,
        causal=chosen != "together",
        own_queries=torch.full((LAYERS, QUERY_HEADS, min(asked, count), spec.head_dim), float("nan")).to(
            spec.device, spec.dtype
        )
        if asked
        else None,
        asked_from=before + max(0, count - asked),
    )


def twin(rows: SegmentRows) -> SegmentRows:
    """An independent copy with the strides of the original's own pieces."""
    copies = {
        field.name: value.clone(memory_format=torch.contiguous_format)
        for field in dataclasses.fields(rows)
        if isinstance(value := getattr(rows, field.name), Tensor)
    }
    return dataclasses.replace(rows, **copies)


MIXES = {
    "frames": [(37, 0, 5, False, True), (0, 0, 7, False, True), (70, 0, 5, False, True)],
    "asked": [(37, 0, 5, False, True, "", 3), (0, 0, 2, False, True, "", 4), (9, 4, 6, True, False, "", 1)],
    "questions": [(40, 0, 9, True, False), (33, 11, 1, True, False), (0, 3, 1, True, False)],
    "mixed": [(20, 0, 6, False, True), (65, 4, 1, True, False), (16, 0, 12, True, False), (3, 0, 1, False, True)],
    "unasked": [(20, 0, 6, False, True), (65, 4, 1, True, False), (16, 0, 12, False, False), (3, 0, 1, False, True)],
    "together": [(40, 0, 37, False, True, "together"), (0, 0, 7, False, True), (65, 4, 5, True, False, "together")],
    "chosen": [(65, 4, 1, True, False, "heads"), (40, 0, 9, True, False, "rows"), (33, 2, 3, False, False, "heads")],
    "many ask": [(3 + n, n % 3, 1, n % 4 != 3, False) for n in range(24)],
}


def run_mix(spec: ModelSpec, mix: str, tiles: Tiles) -> list[tuple[Tensor, Tensor]]:
    """(got, wanted) tensors of every kind: outputs, stored rows, ledgers."""
    segments = [make_rows(spec, *sizes[:3], seed, *sizes[3:]) for seed, sizes in enumerate(MIXES[mix])]
    copies = [twin(rows) for rows in segments]
    counts = [rows.num_tokens for rows in segments]
    total = sum(counts) + 6
    tables = PassTables(spec, total, len(segments) + 2, tiles, asked=mix == "asked")
    told = [mix != "unasked" or number in (1, 3) for number in range(len(segments))]
    tables.fill(segments, told)
    attention = RowAttention(tables)
    cos, sin = angles_of(tables.positions, spec.head_dim)
    attention.turn(cos, sin)
    generator, pairs = torch.Generator().manual_seed(9), []
    for layer in range(LAYERS):
        packed = [
            torch.randn(total, heads, spec.head_dim, generator=generator).to(spec.device, spec.dtype).transpose(0, 1)
            for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
        ]
        got, start = attention.attend(layer, *packed, SCALE), 0
        assert torch.isfinite(got[sum(counts) :]).all()
        for rows, count, is_told in zip(copies, counts, told, strict=True):
            here = slice(start, start + count)
            own = [part[:, here] for part in packed]
            wanted = attend_plainly(layer, *own, SCALE, rows, (cos[here], sin[here]))
            if is_told or layer + 1 < LAYERS:
                pairs.append((got[here].float().clone(), wanted.float()))
            else:  # as the layer before left it
                assert not torch.allclose(got[here].float(), wanted.float())
            start += count
    for rows, copy in zip(segments, copies, strict=True):
        for name in ("own_keys", "own_values", "own_raw", "own_queries", "ledger", "past_keys", "past_values"):
            if getattr(rows, name) is not None:
                pairs.append((getattr(rows, name).float(), getattr(copy, name).float()))
    return pairs


TILES = [Tiles(16, 16, 1), Tiles(16, 16, 4), Tiles(32, 16, 2)]


@needs_interpreter
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_kernels_equal_plain(mix, tiles):
    for got, wanted in run_mix(make_spec(), mix, tiles):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_pass_may_be_filled_again():
    spec = make_spec()
    tables = PassTables(spec, 8, 2, Tiles(16, 16))
    tables.fill([make_rows(spec, 5, 0, 3, 0, False, True), make_rows(spec, 5, 0, 4, 1, False, True)])
    tables.fill([make_rows(spec, 5, 0, 2, 2, False, True)])
    assert tables.tokens.tolist() == [0, 0] + [-1] * 6
    assert tables.positions[0, :2].tolist() == [5, 6]
    assert (tables.blocks[1:] == -1).all()


def test_slow_segments_have_the_first_tiles():
    assert shared_out([20, 7, 16, 1], 16, [False, True, False, True]) == [
        range(2, 4),
        range(1),
        range(4, 5),
        range(1, 2),
    ]
    assert shared_out([], 16, []) == []


def test_large_tiles_fit_shared_memory():
    """Of heads up to 128 numbers of 16 bits, on Hopper, on Ampere of 163 KiB, and where there is less."""
    for row_bytes in (32, 128, 256):
        assert tiles_for(1024, row_bytes=row_bytes).shared_bytes(row_bytes) <= 232_448
        assert tiles_for(1024, row_bytes=row_bytes, shared=166_912).shared_bytes(row_bytes) <= 166_912
    assert tiles_for(1024).keys == 128 and tiles_for(1024, shared=166_912).keys == 64


def test_what_does_not_fit_is_refused():
    spec = make_spec()
    tables = PassTables(spec, 8, 2, Tiles(16, 16))
    rows = make_rows(spec, 5, 0, 3, 0, False, True)
    with pytest.raises(InputError, match="does not fit"):
        tables.fill([rows] * 3)
    with pytest.raises(InputError, match="9 tokens"):
        tables.fill([make_rows(spec, 5, 0, 9, 0, False, True)])
    with pytest.raises(ModelError, match="power of two"):
        RowAttention(PassTables(make_spec(head_dim=12), 8, 2, Tiles(16, 16)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("tokens", [16, 128, 320, 1024])
def test_compiled_kernels_equal_plain(mix, dtype, tolerance, tokens):
    spec = make_spec(dtype, "cuda", 64)
    for got, wanted in run_mix(spec, mix, tiles_for(tokens)):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
