"""Sums of a few rows in one launch are those of the plain form, and of the linear map they stand for."""

import os

import pytest
import torch

from onlooker.kernels.pooled import Taps, mix_rows, pooling_kernels
from onlooker.models._pooling import bilinear_map

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("side", "to", "dim"), [(9, 5, 40), (4, 2, 16), (1, 1, 24), (7, 4, 300)])
def test_the_same_sums(on, side, to, dim):
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")
    matrix = bilinear_map((side, side), (to, to))
    rows = torch.randn(3, side**2, dim, generator=torch.Generator().manual_seed(side)).to(on)
    taps = Taps.of(matrix).to(rows.device)
    got = mix_rows(rows, taps, pooling_kernels(rows.device))
    torch.testing.assert_close(got, mix_rows(rows, taps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, matrix.to(on) @ rows, rtol=1e-5, atol=1e-5)


def test_a_bilinear_map_has_four_taps():
    assert Taps.of(bilinear_map((27, 27), (14, 14))).places.shape == (196, 4)
    assert torch.allclose(Taps.of(bilinear_map((27, 27), (14, 14))).weights.sum(1), torch.ones(196))
