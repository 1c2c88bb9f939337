"""Norms and SiLU between products: kernels, interpreted or compiled, against plain PyTorch and Transformers."""

import os

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from onlooker.kernels.language_rows import (
    add_norm,
    add_norm_8,
    eight_bits,
    language_kernels,
    silu_product,
    silu_product_8,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def equal(kernels, device, dtype):
    generator = torch.Generator().manual_seed(0)
    for tokens, dim in ((1, 24), (5, 96), (3, 2050)):
        hidden, more, gate = (torch.randn(tokens, dim, generator=generator).to(device, dtype) * 3 for _ in range(3))
        norm = Qwen2RMSNorm(dim, eps=1e-6).to(device, dtype)
        norm.weight.data.normal_(1.0, 0.2)
        for added in (more, None):
            total = hidden if added is None else hidden + added
            mine = hidden.clone()
            got = add_norm(mine, added, norm.weight.detach(), 1e-6, kernels)
            torch.testing.assert_close(mine, total, rtol=0, atol=0)
            torch.testing.assert_close(
                got, norm(total).detach(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
            )
        wanted = torch.nn.functional.silu(gate) * more
        torch.testing.assert_close(
            silu_product(gate, more, kernels), wanted, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
        )


def equal_in_8_bits(kernels, device, dtype):
    """The kernels make the 8-bit numbers that the plain form makes; one in the middle may go either way."""
    generator = torch.Generator().manual_seed(1)
    for tokens, dim in ((1, 24), (5, 96), (2, 64), (3, 4100)):
        hidden, more, gate = (torch.randn(tokens, dim, generator=generator).to(device, dtype) * 3 for _ in range(3))
        hidden[0] = 0.0
        weight = torch.randn(dim, generator=generator).to(device, dtype)
        mine, plain = hidden.clone(), hidden.clone()
        pairs = [(eight_bits(gate, kernels), eight_bits(gate)), (eight_bits(hidden, kernels), eight_bits(hidden))]
        pairs.append((add_norm_8(mine, more, weight, 1e-6, kernels), add_norm_8(plain, more, weight, 1e-6)))
        pairs.append((add_norm_8(mine, None, weight, 1e-6, kernels), add_norm_8(plain, None, weight, 1e-6)))
        pairs.append((silu_product_8(gate, more, kernels), silu_product_8(gate, more)))
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)
        for got, wanted in pairs:
            assert got.dtype == wanted.dtype == dtype
            torch.testing.assert_close(got.scale, wanted.scale, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)
            ours, theirs = got.codes.float(), wanted.codes.float()
            torch.testing.assert_close(ours, theirs, rtol=1 / 7, atol=2.0**-9)
            assert (ours != theirs).float().mean() < (0.05 if dtype == torch.bfloat16 else 0.002)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_equals_transformers(dtype):
    equal(None, "cpu", dtype)


def test_eight_bits_are_near():
    rows = torch.randn(7, 300, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 7)[:, None]
    found = eight_bits(rows)
    back = found.codes.float() * found.scale[:, None]
    # Half of the last of three bits; what is below the smallest normal number is off by half of the smallest there is.
    assert ((back - rows).abs() <= rows.abs() / 16 + found.scale[:, None] * 2.0**-10).all()
    assert (back.abs().amax(1) - rows.abs().amax(1)).abs().max() < 1e-3 * rows.abs().max()


@pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
def test_interpreted_equals_transformers():
    equal(language_kernels(), "cpu", torch.float32)


@pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
def test_interpreted_8_bits_equal_plain():
    equal_in_8_bits(language_kernels(), "cpu", torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_equals_transformers(dtype):
    equal(language_kernels(), "cuda", dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_8_bits_equal_plain(dtype):
    equal_in_8_bits(language_kernels(), "cuda", dtype)
