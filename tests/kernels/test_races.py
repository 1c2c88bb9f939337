"""The watch over programs of one launch finds what it is there for."""

# pyright: reportArgumentType=false, reportIndexIssue=false

import os
import subprocess
import sys

import pytest
import torch
from races import Race

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.usefixtures("no_races")

if INTERPRETED:
    import triton
    import triton.language as tl

    @triton.jit
    def shift(rows, out, count, N: tl.constexpr):
        """Each program moves N numbers one place up."""
        at = tl.program_id(0) * N + tl.arange(0, N)
        tl.store(out + at + 1, tl.load(rows + at, mask=at < count, other=0), mask=at < count)

    @triton.jit
    def sign(out, equal, N: tl.constexpr):
        """Every program writes to the same place."""
        tl.store(out + tl.arange(0, N), tl.where(equal > 0, 1, tl.program_id(0)))

    @triton.jit
    def gather(out, N: tl.constexpr):
        """Every program adds to the same place."""
        tl.atomic_add(out + tl.arange(0, N), 1)


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
def test_programs_in_each_others_way_are_found():
    rows = torch.arange(20)
    with pytest.raises(Race, match=r"shift: program \d reads what program \d writes"):
        shift[(2,)](rows, rows, 16, N=8)
    shift[(1,)](rows, rows, 16, N=16)
    shift[(2,)](rows, torch.zeros(20, dtype=rows.dtype), 16, N=8)
    shift[(2,)](rows, rows, 7, N=8)
    with pytest.raises(Race, match="programs 0 and 1 write other numbers"):
        sign[(2,)](rows, 0, N=8)
    sign[(2,)](rows, 1, N=8)
    gather[(2,)](rows, N=8)


@pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
def test_memory_that_nobody_wrote_is_filled():
    assert torch.empty(3).isnan().all() and torch.empty(3, dtype=torch.int32).eq(2**31 - 1).all()
