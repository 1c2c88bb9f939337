"""Every Triton kernel compiles for Hopper GPUs, fits their shared memory, and reads no register that nothing wrote.
Its constants fit the registers they go to.

No GPU is needed: the library's own functions are called on CPU tensors of the real widths, under a Triton driver that
compiles what they launch, notes the machine code and launches nothing. It has a process of its own, because Triton has
one driver a process and remembers what it compiled under it.

The registers are looked at because a compiler did get this wrong: ptxas 12.8 (in Triton 3.6) lost where an operand lies
in shared memory, and window attention read anywhere. So are the constants: Triton 3.6 puts what stands for a masked
number of 8 bits into a load of several bytes with its sign (136 as 0xffffff88), and heads attended to columns that are
not there. An interpreter does neither.
"""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

KERNELS = Path(__file__).parents[2] / "onlooker" / "kernels"
SHARED_BYTES = 232_448
"""Shared memory a program may have on a GPU of compute capability 9.0."""
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)\s+([^;]*);")
UNIFORM = re.compile(r"\bUR(\d+)\b")
CONSTANT = re.compile(r"mov\.[bsu](\d+)\s+%\w+, 0x([0-9a-fA-F]+);")


def kernel_names() -> set[str]:
    """All kernels of the library that are launched: those that no other kernel calls."""
    text = "".join(path.read_text() for path in KERNELS.glob("_*_triton.py"))
    made = set(re.findall(r"^@triton\.jit.*\ndef (\w+)", text, re.MULTILINE))
    return made - set(re.findall(r"(?<!def )(?<![.\w])(\w+)\(", text))


def unwritten(code: str) -> list[str]:
    """Instructions that read a uniform register (descriptors of shared memory are there) which none writes."""
    written: set[int] = set()
    reads: list[tuple[int, str]] = []
    for name, operands in INSTRUCTION.findall(code):
        first, _, rest = operands.partition(",")
        target = UNIFORM.fullmatch(first.strip())
        if target:
            # Wide results fill neighbours too; one too many only makes this check milder.
            width = 4 if "128" in name else 2 if re.search("64|WIDE|CS2UR|LEPC", name) else 1
            written.update(range(int(target[1]), int(target[1]) + width))
        read = rest if target else operands
        reads += [(int(number), f"{name} {operands.strip()}") for number in UNIFORM.findall(read)]
    return [text for number, text in reads if number not in written]


def misfits(ptx: str) -> list[str]:
    """Constants that have more bits than the register they go to, and are not minus one."""
    found = [(int(width), int(number, 16)) for width, number in CONSTANT.findall(ptx)]
    return [f"{number:#x} in {width} bits" for width, number in found if number >> width and ~number & (1 << width) - 1]


def test_constants_fit():
    assert misfits("mov.u32 %r101, 0xffffffffffffff88;") == ["0xffffffffffffff88 in 32 bits"]
    assert misfits("mov.u16 %rs36, 0xffffffffffffff88;")
    assert not misfits("mov.u32 %r1, 0x88888888; mov.b64 %rd1, 0xffffffffffffff88; mov.u32 %r2, 0xffffffffffffffff;")


def test_masked_numbers_are_zero_or_minus_one():
    """Any other whole number may reach a load of several bytes with its sign (see above)."""
    found = []
    for path in KERNELS.glob("_*_triton.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "other":
                text = ast.unparse(node.value)
                if re.fullmatch(r"-?\d+", text) and int(text) not in (0, -1):
                    found.append(f"{path.name}:{node.value.lineno}: other={text}")
    assert not found


def test_registers_are_told_apart():
    line = "        /*{:04x}*/                   {} ;\n"
    code = ["UIADD3 UR4, UP0, UR6, 0x20, URZ", "HGMMA.64x16x16.F32.BF16 R24, R56, gdesc[UR4].tnspB, RZ, !UPT"]
    text = "".join(line.format(16 * number, each) for number, each in enumerate(code))
    assert unwritten(text) == ["UIADD3 UR4, UP0, UR6, 0x20, URZ"]
    assert not unwritten(line.format(0, "ULDC.64 UR6, c[0x0][0x208]") + text)
    assert len(unwritten(line.format(0, "@P2 LDG.E.128 R8, desc[UR14][R80.64+0x80]"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_compile_for_hopper():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_INTERPRET")}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    if not compiled:
        pytest.skip(f"this Triton has no compiler for NVIDIA GPUs: {done.stderr[-300:]}")
    assert {each["kernel"] for each in compiled} == kernel_names()
    assert {each["kernel"] for each in compiled if each["products"]} >= {
        "attend",
        "attend_windows",
        "attend_rows",
    }
    assert not {each["kernel"]: each["unwritten"] for each in compiled if each["unwritten"]}
    assert not {each["kernel"]: each["misfits"] for each in compiled if each["misfits"]}
    assert max(each["shared"] for each in compiled) <= SHARED_BYTES


# --------------------------------------------------------------------------------------------- the process of its own


class Compiler:
    """A Triton driver without a device: what is launched is compiled and noted."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", 90, 32)
        self.utils = self
        self.compiled: list[dict[str, Any]] = []

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        # Operands of matrix products lie in shared memory; the others have no descriptors that could be wrong.
        code = disassembled(binary) if shared > 4096 else ""
        self.compiled.append(
            {"kernel": name, "shared": shared, "products": "MMA" in code, "unwritten": unwritten(code)}
        )
        return self, self, 0, 0, 1024

    def read(self, module: Any, function: Any, name: str, files: dict[str, str], number: str) -> None:
        """What Triton calls when a kernel has been loaded, with the files it was compiled to."""
        texts = [Path(path).read_text() for file, path in files.items() if file.endswith(".ptx")]
        self.compiled[-1]["misfits"] = [text for ptx in texts for text in misfits(ptx)]

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *given: None


def disassembled(binary: bytes) -> str:
    """Machine code as text, by the tool that comes with Triton."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", "-ndf", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def vision_models(dtype: torch.dtype) -> Iterator[tuple[Any, torch.Tensor]]:
    """Towers of two layers at the widths of real models, and a small frame of two streams; Qwen2.5-VL's second layer
    sees the whole frame, its first one has windows, of which one is whole."""
    from onlooker.models import SHAPES, random_model
    from onlooker.models._qwen_random import random_vision
    from onlooker.models._shapes import QwenShape

    few = {"text_layers": 1, "text_dim": 128, "text_mlp": 128, "query_heads": 1, "kv_heads": 1, "vocabulary": 32}
    small = {**few, "vision_layers": 2, "vision_mlp": 128}
    for name in ("qwen2.5-vl-7b", "qwen3-vl-8b"):
        shape = SHAPES[name]
        assert isinstance(shape, QwenShape)
        whole = (1,) if shape.whole_layers else None
        taps = (1,) if shape.tap_layers else ()
        vision = random_vision(
            dataclasses.replace(shape, **small, whole_layers=whole, tap_layers=taps), dtype, torch.device("cpu")
        )
        size = (8 * shape.patch_size, 12 * shape.patch_size)
        yield vision.tower(8, 12), vision.embed_patches(torch.zeros(2, 3, *size))
    shape = dataclasses.replace(SHAPES["llava-onevision-7b"], **small, image_size=8 * 14)
    model: Any = random_model(shape, str(dtype).removeprefix("torch."), "cpu")
    pixels = torch.zeros(2, 3, 8 * 14, 8 * 14)
    yield model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels)


def run_vision(dtype: torch.dtype) -> None:
    """Steps of whole and of partly computed streams, and dense ones."""
    from onlooker.encode._packed import PackedTower, References, Ways, packed_layers
    from onlooker.encode.stc_published import STCPublished
    from onlooker.kernels.gated import gated_rows
    from onlooker.kernels.rows import Stored, vision_kernels

    kernels = vision_kernels()
    for tower, hidden in vision_models(dtype):
        plan, taps = STCPublished(2).plan(tower), tuple(sorted(tower.tap_layers))
        step = PackedTower(packed_layers(tower), plan, Ways(kernels, "split", "in_place"), taps)
        tensors = [[hidden.new_zeros(count, *hidden.shape[1:]) for _ in hidden] for count in step.kept]
        tables = [torch.tensor([each.data_ptr() for each in stored]) for stored in tensors]
        old = References(*(Stored(addresses=table) for table in tables))
        step.run(hidden, step.chosen(hidden, 1), old)
        dense = PackedTower(step.layers, dataclasses.replace(plan, count=0), step.ways, taps)
        dense.run(hidden, dense.chosen(hidden, 2), None)
    # Values that are not read in place are put side by side, and tokens chosen before the first layer are gathered.
    plan = STCPublished(2, selection="patch").plan(tower)
    beside = dataclasses.replace(step, plan=plan, ways=Ways(kernels, "split", "split"))
    beside.run(hidden, beside.chosen(hidden, 0), old)
    gated_rows(torch.zeros(2, 2 * 3456, dtype=dtype), kernels)


def run_coded(dtype: torch.dtype) -> None:
    """Frames that reuse references of every kind, and whole ones."""
    from onlooker.encode.stc_cacher import STCCacher
    from onlooker.encode.stc_cacher._prepared import CodedEncoder

    for tower, hidden in vision_models(dtype):
        for references in ("int8", "int4", "model"):
            method = STCCacher(reference_dtype=references, refresh_share=None)
            encoder = CodedEncoder(method, tower, hidden[0], 2, lambda name: None, "split")
            states = [method.new_state() for _ in hidden]
            for _ in range(2):
                encoder.encode(hidden, states)


def run_corrected(dtype: torch.dtype) -> None:
    """Frames that reuse references in 8 and 4 bits, and whole ones."""
    from onlooker.encode.stc_corrected import STCCorrected
    from onlooker.encode.stc_corrected._prepared import CorrectedEncoder

    for tower, hidden in vision_models(dtype):
        method = STCCorrected(reference_dtype="int8")
        if method.has_kernels(tower, hidden):
            encoder = CorrectedEncoder(method, tower, hidden[0], 2, lambda name: None, "torch")
            states = [method.new_state() for _ in hidden]
            for _ in range(2):
                encoder.encode(hidden, states)


def run_codes() -> None:
    """Blocks in codes of every form: encoded, and read by passes from few tokens to many."""
    from onlooker.core import registry
    from onlooker.core.contracts import ModelSpec
    from onlooker.kernels import _coded_rows_triton, _ranges_triton
    from onlooker.kernels.coded_rows import COLUMNS, Form, Scratch, encode_block
    from onlooker.kernels.packed_attention import PassTables, RowAttention
    from onlooker.kernels.ranges import copy_ranges
    from onlooker.kernels.tiles import tiles_for

    copy_ranges(np.array([[0, 16, 32], [0, 1, 2]]), torch.device("cpu"), _ranges_triton)
    spec = ModelSpec("7b", 1, 28, 4, 128, 3584, torch.bfloat16, torch.device("cpu"), max_positions=4096)
    rows, table = torch.zeros(1, 4, 60, 128, dtype=spec.dtype), torch.zeros(8, COLUMNS, dtype=torch.int64)
    for codec in ("int8", "int4", "fp8"):
        form = Form.of(registry.make("codec", codec).form)
        assert form is not None
        encode_block(rows, rows, torch.zeros(1 << 20, dtype=torch.uint8), form, table, 0, 0, _coded_rows_triton)
        for tokens in (16, 128, 512):
            tables = PassTables(spec, tokens, 2, tiles_for(tokens), scratch=Scratch(spec, 64))
            attention = RowAttention(tables, form)
            attention.turn(torch.zeros(tokens, 128), torch.zeros(tokens, 128))
            queries = torch.zeros(28, tokens, 128, dtype=spec.dtype)
            attention.attend(0, queries, queries[:4], queries[4:8], 0.1)


def run_language() -> None:
    """Passes of LLaVA-OneVision-7B, from few tokens to many."""
    from onlooker.core.contracts import ModelSpec
    from onlooker.kernels import _pooled_triton
    from onlooker.kernels.language_rows import (
        add_norm,
        add_norm_8,
        eight_bits,
        language_kernels,
        silu_product,
        silu_product_8,
    )
    from onlooker.kernels.packed_attention import PassTables, RowAttention
    from onlooker.kernels.pooled import Taps, mix_rows
    from onlooker.kernels.tiles import tiles_for
    from onlooker.kernels.turning import Tables

    spec = ModelSpec("7b", 1, 28, 4, 128, 3584, torch.bfloat16, torch.device("cpu"), max_positions=4096)
    for tokens in (16, 512):
        attention = RowAttention(PassTables(spec, tokens, 2, tiles_for(tokens)))
        attention.turn(torch.zeros(tokens, 128), torch.zeros(tokens, 128))
        queries = torch.zeros(28, tokens, 128, dtype=spec.dtype)
        attention.attend(0, queries, queries[:4], queries[4:8], 0.1)
    rows, weight = torch.zeros(2, 3584, dtype=spec.dtype), torch.zeros(3584, dtype=spec.dtype)
    for more in (None, rows):
        add_norm(rows, more, weight, 1e-6, language_kernels())
        add_norm_8(rows, more, weight, 1e-6, language_kernels())
    eight_bits(rows, language_kernels())
    wide = torch.zeros(2, 18944, dtype=spec.dtype)
    silu_product(wide, wide, language_kernels())
    silu_product_8(wide, wide, language_kernels())
    mix_rows(torch.zeros(2, 9, 3584, dtype=spec.dtype), Taps.of(torch.ones(4, 9)), _pooled_triton)
    angles = Tables(lambda steps: (torch.zeros(steps.shape[1], 128),) * 2, 1, torch.device("cpu"))
    angles.turned(torch.zeros(2, 4, 14, 128, dtype=spec.dtype), 58)


def run_picks() -> None:
    """Frames of LLaVA-OneVision."""
    from onlooker.kernels.picks import farthest_first, picks_kernels

    farthest_first(torch.rand(2, 196, 196), 40, picks_kernels())


def run_likeness() -> None:
    """Frames of Qwen2.5-VL."""
    from onlooker.kernels.likeness import likeness_kernels, row_likeness

    frames = torch.rand(2, 196, 3584, dtype=torch.bfloat16)
    for before in (frames, frames[:, :1]):
        row_likeness(frames, before, likeness_kernels())


def run_groups() -> None:
    """Windows of LLaVA-OneVision's frames: features, and one number for each token."""
    from onlooker.kernels.groups import Groups, blended_rows, group_kernels

    groups, share = Groups.found(torch.zeros(196, dtype=torch.int64), None, group_kernels()), torch.zeros(196)
    groups.sums(share)
    for values in (torch.rand(196, 3584, dtype=torch.bfloat16), torch.rand(196)):
        for weight in (None, torch.ones(196)):
            blended_rows(values, groups, share, share == 0, weight)


def run_ranks() -> None:
    """Frames and windows of LLaVA-OneVision, some and all of their tokens."""
    from onlooker.kernels.density import centres_of, density_scores
    from onlooker.kernels.ranks import among_best, kept_first, rank_kernels, rank_within

    scores, kernels = torch.rand(2, 196), rank_kernels()
    for count in (torch.ones(2), torch.ones(2, dtype=torch.int64)):
        among_best(scores, count, kernels)
    kept_first(torch.zeros(2, 1568, dtype=torch.bool), kernels)
    rank_within(torch.rand(2, 1568), torch.zeros(2, 1568, dtype=torch.int64), kernels)
    for among in (None, scores > 0):
        for products in (False, True):
            density_scores(torch.rand(2, 196, 196), products, 60.0, among, 7, 1 << 15, kernels)
    centres_of(scores, torch.rand(2, 196, 196), torch.ones(2), kernels)


@torch.no_grad()
def main() -> None:
    """Compile, and print a line of JSON for each machine code; nothing where Triton cannot."""
    import triton
    from triton.backends import backends

    if "nvidia" not in backends:
        print(f"backends of Triton {triton.__version__}: {', '.join(backends)}", file=sys.stderr)
        return
    from onlooker.kernels import rows

    compiler: Any = Compiler()
    triton.runtime.driver.set_active(compiler)
    triton.knobs.runtime.kernel_load_end_hook.add(compiler.read)
    rows._starts_early = lambda on: True  # as on the device that is compiled for, which nobody can ask here
    run_vision(torch.bfloat16)
    run_coded(torch.bfloat16)
    run_corrected(torch.bfloat16)
    run_language()
    run_picks()
    run_likeness()
    run_groups()
    run_ranks()
    run_codes()
    for each in compiler.compiled:
        print(json.dumps(each))


if __name__ == "__main__":
    main()
