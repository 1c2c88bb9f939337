"""Picks in one launch are those of the plain form."""

import os
import subprocess
import sys

import pytest
import torch

from onlooker.kernels.picks import farthest_first, picks_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", "cpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("tokens", "count"), [(16, 16), (49, 12), (196, 3)])
def test_the_same_picks(on, tokens, count):
    """With ties (distances in coarse steps) and without."""
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")
    made = torch.Generator().manual_seed(1)
    for steps in (4, 10**6):
        distance = (torch.rand(3, tokens, tokens, generator=made) * steps).round().to(on)
        expected = farthest_first(distance, count, None)
        assert torch.equal(farthest_first(distance, count, picks_kernels()), expected)
        assert (expected > 0).sum(1).tolist() == [count] * 3
