"""Kernels over keys and values in codes against plain PyTorch: blocks encoded, and read where they lie."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from onlooker.core import registry
from onlooker.core.contracts import ModelSpec
from onlooker.core.errors import ModelError
from onlooker.kernels.coded_rows import COLUMNS, CodedRows, Form, Scratch, coding_kernels, encode_block
from onlooker.kernels.packed_attention import PassTables, RowAttention, SegmentRows, attend_plainly
from onlooker.kernels.tiles import Tiles, tiles_for
from onlooker.kvstore.coded import Coded, room

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAYERS, QUERY_HEADS, KV_HEADS = 2, 6, 2
CODECS = ("int8", "int4", "fp8", "int8:group=16")
SIZES = (5, 60, 16, 70)
WAYS = {
    "codes": (Tiles(16, 16, 1), 0, False),
    "shared codes": (Tiles(16, 16, 4), 0, False),
    "one laid out": (Tiles(16, 16, 1), 160, False),
    "all laid out": (Tiles(16, 16, 2), 300, False),
    "singles too": (Tiles(16, 16, 1), 300, True),
}
"""With room for nobody's rows laid out, for the first segment's only, and for more than there are; and of segments of
one tile, too."""
TRIED = [(name, "codes") for name in CODECS]
TRIED += [
    ("int4", "shared codes"),
    ("int8:group=16", "shared codes"),
    ("int8", "one laid out"),
    ("int4", "singles too"),
    ("fp8", "one laid out"),
]
TRIED += [("int8:group=16", "all laid out"), ("int4", "all laid out")]
"""Each codec and each way, and each with some of the other: the interpreter takes seconds for one."""


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so the interpreted tests have a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{2 * len(CODECS) + len(TRIED) + 1} passed" in done.stdout, done.stdout[-300:]


def make_spec(dtype: torch.dtype = torch.float32, device: str = "cpu", head_dim: int = 16) -> ModelSpec:
    place = torch.device(device)
    return ModelSpec("rows", LAYERS, QUERY_HEADS, KV_HEADS, head_dim, 32, dtype, place, max_positions=4096)


def states(spec: ModelSpec, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys whose channels differ in size and lie off zero, and values, in the middle of larger tensors."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, LAYERS, KV_HEADS, num_tokens + 4, spec.head_dim, generator=generator)
    sizes = torch.logspace(-1, 0, spec.head_dim)
    keys = keys * sizes + sizes.flip(0)
    keys, values = (part.to(spec.device, spec.dtype)[:, :, 2:-2] for part in (keys, values))
    return keys, values


def encoded(spec: ModelSpec, name: str, sizes: tuple[int, ...], seed: int) -> tuple[list[Coded], Tensor]:
    """Blocks as the kernel encodes them, and their tiles."""
    codec, blocks, before = registry.make("codec", name), [], 7
    form = Form.of(codec.form)
    assert form is not None
    count = sum(len(form.tiles(0, size, 0)) for size in sizes)
    table = torch.zeros(count, COLUMNS, dtype=torch.int64, device=spec.device)
    slot = 0
    for number, size in enumerate(sizes):
        block = room(spec, codec, size, spec.device)
        encode_block(
            *states(spec, size, seed + number), block.slab, form, table, slot, before, coding_kernels(spec.device)
        )
        tiles = form.tiles(block.address, size, before)
        assert table[slot : slot + len(tiles)].tolist() == tiles
        blocks.append(block)
        slot, before = slot + len(tiles), before + size
    return blocks, table


def check_blocks(spec: ModelSpec, name: str) -> None:
    codec = registry.make("codec", name)
    blocks, _ = encoded(spec, name, SIZES, 0)
    for number, (block, size) in enumerate(zip(blocks, SIZES, strict=True)):
        wanted = codec.encode(*states(spec, size, number))
        for part in wanted:
            got, there = block.parts[part].float(), wanted[part].float()
            if part.endswith("codes"):  # a number in the middle between two codes may go either way on a GPU
                assert (got != there).float().mean() < 0.002, f"{part}: {(got - there).abs().max()}"
                assert name == "fp8" or (got - there).abs().max() <= 1
            else:
                torch.testing.assert_close(got, there, rtol=2e-3, atol=0)


def check_attention(
    spec: ModelSpec, name: str, tiles: Tiles, tolerance: float, scratch_rows: int = 0, singles: bool = False
) -> None:
    """Frames, a question that is noted, and one that has nothing in codes, in one pass."""
    codec = registry.make("codec", name)
    generator, segments = torch.Generator().manual_seed(5), []

    def slab(filled: int, room: int) -> Tensor:
        whole = torch.zeros(LAYERS, KV_HEADS, room + 4, spec.head_dim)
        whole[:, :, :filled] = torch.randn(LAYERS, KV_HEADS, filled, spec.head_dim, generator=generator)
        return whole.to(spec.device, spec.dtype)[:, :, :room]

    kept = []
    for number, (past, sizes, before, count, cited) in enumerate(
        [(3, SIZES, 0, 7, False), (20, (9, 70), 2, 5, True), (9, (), 0, 4, True), (0, (33,), 0, 1, True)]
    ):
        blocks, table = encoded(spec, name, sizes, 10 * number)
        kept.append((blocks, table))

        def read(layer: int, blocks: list[Coded] = blocks) -> tuple[Tensor, Tensor]:
            pairs = [codec.decode({n: part[layer] for n, part in one.parts.items()}, spec.dtype) for one in blocks]
            return torch.cat([keys for keys, _ in pairs], dim=1), torch.cat([values for _, values in pairs], dim=1)

        coded = CodedRows(read, sum(sizes), table, 7) if sizes else None
        ledger = torch.zeros(LAYERS, past + sum(sizes) + before, device=spec.device) if cited else None
        segments.append(
            SegmentRows(
                *(slab(past, past) for _ in range(2)),
                *(slab(before, before + count) for _ in range(2)),
                None,
                before,
                torch.arange(count, device=spec.device)[None],
                past + sum(sizes) + before,
                ledger=ledger,
                own_noted=before if cited else 0,
                coded=coded,
            )
        )
    copies = [
        dataclasses.replace(
            rows,
            own_keys=rows.own_keys.clone(),
            own_values=rows.own_values.clone(),
            ledger=None if rows.ledger is None else rows.ledger.clone(),
        )
        for rows in segments
    ]
    total = sum(rows.num_tokens for rows in segments) + 3
    tables = PassTables(spec, total, 6, tiles, scratch=Scratch(spec, scratch_rows, singles) if scratch_rows else None)
    tables.fill(segments)
    if singles:
        laid = [int(row[30]) >= 0 for row in tables.table.view(-1, 32)[:4]]
        assert laid == [True, True, False, scratch_rows >= sum(sum(one.num_tokens for one in b) for b, _ in kept)]
    attention = RowAttention(tables, Form.of(codec.form))
    angles = tables.positions[0][:, None] * 100.0 ** (
        -torch.arange(spec.head_dim // 2, device=spec.device) / spec.head_dim * 2
    )
    cos, sin = torch.cat([angles] * 2, dim=1).cos(), torch.cat([angles] * 2, dim=1).sin()
    attention.turn(cos, sin)
    scale = spec.head_dim**-0.5
    for layer in range(LAYERS):
        packed = [
            torch.randn(total, heads, spec.head_dim, generator=generator).to(spec.device, spec.dtype).transpose(0, 1)
            for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS)
        ]
        got, start = attention.attend(layer, *packed, scale), 0
        for rows in copies:
            here = slice(start, start := start + rows.num_tokens)
            wanted = attend_plainly(layer, *(p[:, here] for p in packed), scale, rows, (cos[here], sin[here]))
            torch.testing.assert_close(got[here].float(), wanted.float(), rtol=tolerance, atol=tolerance)
    for rows, copy in zip(segments, copies, strict=True):
        if rows.ledger is not None and copy.ledger is not None:
            torch.testing.assert_close(rows.ledger, copy.ledger, rtol=tolerance, atol=tolerance)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_blocks_are_encoded_as_the_codec_says(name, dtype):
    check_blocks(make_spec(dtype), name)


@needs_interpreter
@pytest.mark.parametrize(("name", "way"), TRIED)
def test_attention_over_codes_is_attention_over_what_they_mean(name, way):
    tiles, *scratch = WAYS[way]
    check_attention(make_spec(), name, tiles, 1e-4, *scratch)


def test_forms_that_no_kernel_knows_are_refused():
    assert Form.of("") is None and Form.of("int4:32") == Form("int4", 32)
    for text in ("int3:64", "int8", "int8:65", "int8:x"):
        with pytest.raises(ModelError, match="no attention kernel knows"):
            Form.of(text)
    # Groups that a tile cannot hold are read by plain passes.
    assert registry.make("codec", "int8:group=128").form == ""


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_compiled_blocks_are_encoded_as_the_codec_says(name, dtype):
    check_blocks(make_spec(dtype, "cuda", 128), name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("tokens", [16, 128, 320, 1024])
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_compiled_attention_over_codes_is_attention_over_what_they_mean(name, dtype, tolerance, tokens, head_dim):
    for scratch, singles in ((0, False), (160, False), (300, False), (300, True), (1000, True)):
        check_attention(make_spec(dtype, "cuda", head_dim), name, tiles_for(tokens), tolerance, scratch, singles)
