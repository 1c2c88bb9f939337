"""A memory that asks a few heads: which blocks they find, and what the heads' scores are."""

import pytest
import torch

from onlooker.core.errors import InputError
from onlooker.core.spans import Span
from onlooker.kvstore.signals import last_shares
from onlooker.memory.retrieval_heads import RetrievalHeads


def spans(count: int) -> list[Span]:
    return [Span(0, "prefix", 3, 0.0, 0.0), *(Span(n, "vision", 4, float(n), float(n)) for n in range(1, count))]


def test_what_lies_around_the_best_is_seen_and_nothing_else():
    policy, scores = RetrievalHeads(budget=10, around=2, recent=4), torch.zeros(100)
    scores[[40, 41, 42]] = 0.5  # a thing that stayed
    scores[70] = 0.8  # one frame by itself
    found = policy.recall(spans(100), scores, policy.new_state()).blocks
    assert found == (0, 1, 39, 40, 41, 42, 43, 68, 69, 70, 71, 72, 96, 97, 98, 99)
    few = RetrievalHeads(budget=3, around=2, recent=1, first=0)
    assert few.recall(spans(100), scores, few.new_state()).blocks == (0, 40, 41, 42, 99)
    none = RetrievalHeads(budget=0, around=2, recent=1, first=0)
    assert none.recall(spans(100), scores, none.new_state()).blocks == (0, 99)


def test_heads_are_asked_up_to_their_layer_and_all_of_them_in_the_end():
    policy = RetrievalHeads(heads="1.0+2.3", budget=5, around=2, recent=2, first=1)
    found = [torch.zeros(4, 60) for _ in range(4)]
    found[0][:, 10] = 1.0  # nobody asks these
    found[1][1:, 15] = 1.0
    found[1][0, 20] = 0.5
    found[2][3, 30] = 0.9
    seen = [policy.recall_found(n, spans(60), found[: n + 1], policy.new_state()).blocks for n in range(5)]
    ends = (0, 1), (58, 59)
    assert seen[0] == (*ends[0], 53, 54, 55, 56, 57, *ends[1])
    assert seen[1] == (*ends[0], 18, 19, 20, 21, 22, *ends[1])
    assert seen[2] == seen[3] == seen[4] == (*ends[0], 28, 29, 30, 31, 32, *ends[1])


def test_shares_of_heads_are_the_softmax_of_the_last_token_alone():
    chance = torch.Generator().manual_seed(0)
    means, queries = torch.randn(7, 2 * 8, generator=chance), torch.randn(4, 5, 8, generator=chance)
    shares = last_shares(means, queries, 2, 0.3)
    for head in range(4):
        logits = [float(queries[head, 4] @ means[n, 8 * (head // 2) : 8 * (head // 2) + 8]) * 0.3 for n in range(7)]
        assert torch.allclose(shares[head], torch.tensor(logits).softmax(0), atol=1e-6)


@pytest.mark.parametrize("heads", ["", "1", "1.0,2.0", "a.b", "1.0+", "-1.0"])
def test_heads_that_are_none_are_refused(heads):
    with pytest.raises(InputError, match="heads are named"):
        RetrievalHeads(heads=heads)
