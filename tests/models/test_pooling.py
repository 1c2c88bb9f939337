"""Pooling as a product equals the stock module's resampling, at every size of our models and in every precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.models import SHAPES
from onlooker.models._pooling import Pooling

SIDES = sorted({s.image_size // s.patch_size for s in SHAPES.values() if hasattr(s, "image_size")} | {16, 24, 7, 1})
EACH_DEVICE = pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def stock(tokens: Tensor, side: int) -> Tensor:
    """As `apply_pooling` of Transformers' LLaVA-OneVision."""
    image = tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2).contiguous()
    return F.interpolate(image, size=[-(-side // 2)] * 2, mode="bilinear").flatten(2).transpose(1, 2)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def test_the_sizes_of_real_models_are_among_them():
    assert 27 in SIDES


@EACH_DEVICE
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_stock_module(on, side, dtype):
    """No further from the exact map than the stock module's own rounding is."""
    make = torch.Generator().manual_seed(side)
    # A mean far from zero, as behind a GELU: weights that do not sum to one would show.
    tokens = (torch.randn(3, side**2, 48, generator=make) + 2).to(on, dtype)
    pooled = Pooling((side, side), (-(-side // 2),) * 2)(tokens)
    exact = stock(tokens.double(), side)
    assert pooled.dtype == dtype and pooled.shape == exact.shape
    assert error(pooled, exact) <= 1.02 * error(stock(tokens, side), exact) + 1e-7
    assert float((pooled - stock(tokens, side)).abs().max()) <= 8 * torch.finfo(dtype).eps


def test_gradients_flow_as_through_the_stock_module():
    tokens = torch.randn(2, 81, 5, requires_grad=True)
    weight = torch.randn(2, 25, 5)
    ours, theirs = (
        torch.autograd.grad((out * weight).sum(), tokens)[0]
        for out in (Pooling((9, 9), (5, 5))(tokens), stock(tokens, 9))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
