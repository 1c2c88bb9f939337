"""Tokens chosen by kernels are those of the plain forms."""

import os

import pytest
import torch

from onlooker.kernels.density import centres_of, density_scores
from onlooker.kernels.ranks import among_best, kept_first, rank_kernels, rank_within

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
STEPS = 1 << 15


def places(on):
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_interpreted.py")
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("tokens", [1, 20, 196, 700])
def test_the_same_are_among_the_best(on, tokens):
    """With ties, with scores of nothing, and for counts of whole and of broken numbers."""
    made = places(on)
    scores = (
        (torch.rand(5, tokens, generator=made) * 9)
        .round()
        .masked_fill(torch.rand(5, tokens, generator=made) < 0.2, -torch.inf)
    )
    count = torch.tensor([0, 1, tokens // 3, tokens, tokens + 4])
    for wanted in (count.to(on), count.float().to(on)):
        expected = among_best(scores.to(on), wanted, None)
        assert torch.equal(among_best(scores.to(on), wanted, rank_kernels()), expected)
        assert expected.sum(1).tolist() == count.clamp_max(tokens).tolist()


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("tokens", [1, 20, 600])
def test_the_same_ranks_within_a_part(on, tokens):
    made = places(on)
    scores = (
        (torch.rand(3, tokens, generator=made) * 9)
        .round()
        .masked_fill(torch.rand(3, tokens, generator=made) < 0.2, -torch.inf)
    )
    part = (torch.rand(3, tokens, generator=made) < 0.05).long().cumsum(1) + torch.tensor([0, 40, 90])[:, None]
    expected = rank_within(scores.to(on), part.to(on), None)
    assert torch.equal(rank_within(scores.to(on), part.to(on), rank_kernels()), expected)
    for row, numbers, ranks in zip(scores.tolist(), part.tolist(), expected.tolist(), strict=True):
        for n in range(0, tokens, 7):
            ahead = [m for m in range(tokens) if numbers[m] == numbers[n] and (row[m], -m) > (row[n], -n)]
            assert ranks[n] == len(ahead)


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("tokens", [1, 20, 196, 5000])
def test_the_same_are_first(on, tokens):
    made = places(on)
    mask = torch.rand(3, tokens, generator=made) < torch.tensor([0.0, 0.3, 1.0])[:, None]
    for found, expected in zip(kept_first(mask.to(on), rank_kernels()), kept_first(mask.to(on), None), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("tokens", [3, 20, 49])
def test_the_same_are_dense(on, some, tokens):
    """Tokens twice, a frame in which none counts, and fewer than there are to be near."""
    made = places(on)
    x = torch.randn(3, tokens, 8, generator=made)
    x[:, 1] = x[:, 0]
    among = torch.rand(3, tokens, generator=made) < torch.tensor([0.0, 0.5, 0.9])[:, None] if some else None
    among = None if among is None else among.to(on)
    inner = (x @ x.transpose(1, 2)).to(on)
    wanted = torch.tensor([2, 1, tokens]).to(on)
    for near, products in ((inner, True), (torch.cdist(x, x).to(on), False)):
        plain, kernels = (
            density_scores(near, products, 8**0.5, among, 7, STEPS, one) for one in (None, rank_kernels())
        )
        assert torch.allclose(kernels[1], plain[1], atol=1e-6)
        # A step is where the last bit of a quotient or of an exponential falls on the other side.
        assert (kernels[0] - plain[0]).abs().max() <= 2
        ways = [centres_of(*plain, wanted, one) for one in (None, rank_kernels())]
        for found, expected in zip(*ways, strict=True):
            assert torch.equal(found, expected)
