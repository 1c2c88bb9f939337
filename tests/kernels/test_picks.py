"""Picks in one launch are those of the plain form."""

import os

import pytest
import torch

from onlooker.kernels.picks import farthest_first, picks_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
