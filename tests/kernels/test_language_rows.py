"""Norms and SiLU between products: kernels, interpreted or compiled, against plain PyTorch and Transformers."""

import os
import subprocess
import sys

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from onlooker.kernels.language_rows import add_norm, language_kernels, silu_product

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_equals_transformers(dtype):
    equal(None, "cpu", dtype)


@pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
def test_interpreted_equals_transformers():
    equal(language_kernels(), "cpu", torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_equals_transformers(dtype):
    equal(language_kernels(), "cuda", dtype)
