"""Cosines in one pass are those of the plain form, within float32's rounding."""

import os

import pytest
import torch

from onlooker.compress._likeness import distances, inner, likenesses
from onlooker.kernels.density import by_products
from onlooker.kernels.likeness import likeness_kernels, row_likeness

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_cosines(on, shared, dtype):
    """One token for each, or one for all of a stream; a token of zeros is like nothing."""
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")
    made = torch.Generator().manual_seed(1)
    now = torch.randn(3, 7, 40, generator=made).to(on, dtype)
    now[1, 2] = 0
    before = torch.randn(3, 1 if shared else 7, 40, generator=made).to(on, dtype)
    expected = row_likeness(now, before, None)
    assert torch.allclose(row_likeness(now, before, likeness_kernels()), expected, atol=1e-6)
    assert expected[1, 2] == 0


def test_distances_by_products_are_those_by_differences():
    """But for tokens too near to tell, which are the same."""
    made = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 9, 512, generator=made)
    tokens[0, 4] = tokens[0, 1]
    tokens[1, 5] = tokens[1, 2] + 1e-5
    found, exact = by_products(inner(tokens, tokens)), distances(tokens)
    assert torch.allclose(found, exact, atol=1e-2) and found[0, 4, 1] == 0 == found[1, 5, 2]
    assert (found.diagonal(dim1=1, dim2=2) == 0).all()


@pytest.mark.gpu
def test_products_of_two_bytes_on_a_gpu():
    """Added up in float32: within rounding of copies in float32."""
    made = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 50, 3584, generator=made).cuda().bfloat16()
    assert torch.allclose(likenesses(tokens, tokens), likenesses(tokens.float(), tokens.float()), atol=1e-5)
    off = ~torch.eye(50, dtype=torch.bool, device="cuda")
    assert torch.allclose(by_products(inner(tokens, tokens))[:, off], distances(tokens)[:, off], atol=1e-2)
