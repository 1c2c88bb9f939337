"""Merging and periodic methods against plain derivations of their papers."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from onlooker.compress import Carrier, DyCoke, MeanPool, STCPruner, ToMe
from onlooker.core.tokens import VisualTokens


def frame(seed: int, tokens: int = 12, number: int = 0, dim: int = 6) -> VisualTokens:
    features = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(seed))
    return VisualTokens.of_frame(features, (tokens // 4, 4) if tokens % 4 == 0 else (1, tokens), number, number * 1.0)


def merged_plainly(features: list[torch.Tensor], keep: int) -> tuple[list[torch.Tensor], list[int], list[int]]:
    """Token merging with lists: features, weights and first members."""
    rows = [(row, 1, place) for place, row in enumerate(features)]
    while len(rows) > keep:
        pairs = []
        for a in range(0, len(rows), 2):
            likeness = [float(cosine_similarity(rows[a][0], rows[b][0], dim=0)) for b in range(1, len(rows), 2)]
            highest = max(range(len(likeness)), key=lambda n, of=likeness: (of[n], -n))
            pairs.append((likeness[highest], a, 2 * highest + 1))
        pairs.sort(key=lambda pair: (-pair[0], pair[1]))
        members = {place: [place] for place in range(len(rows))}
        for _, a, b in pairs[: min(len(rows) - keep, len(rows) // 2)]:
            members[b].append(a)
            del members[a]
        new = []
        for group in members.values():
            weight = sum(rows[n][1] for n in group)
            mean = sum(rows[n][0] * rows[n][1] for n in group) / weight
            new.append((mean, weight, min(rows[n][2] for n in group)))
        rows = sorted(new, key=lambda row: row[2])
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


@pytest.mark.parametrize(("tokens", "keep"), [(12, 9), (12, 5), (13, 4), (7, 1), (2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_tome_equals_merging_with_lists(seed: int, tokens: int, keep: int) -> None:
    given = frame(seed, tokens)
    out = ToMe(keep=keep).compress(given, ToMe().new_state())
    features, weights, places = merged_plainly(list(given.features), keep)
    assert out.slot.tolist() == places and out.weight.tolist() == weights
    assert torch.allclose(out.features, torch.stack(features), atol=1e-5)


def test_tome_merges_twins_before_anything_else() -> None:
    given = frame(4)
    given.features[3] = 2 * given.features[6]  # the same direction, on different sides
    out = ToMe(keep=11).compress(given, ToMe().new_state())
    assert 6 not in out.slot.tolist() and out.weight[3] == 2


def test_dycoke_compares_with_the_first_and_the_third_of_four() -> None:
    method = DyCoke(between_ratio=0.25)
    state = method.new_state()
    frames = [frame(seed, number=seed) for seed in range(9)]
    outs = [method.compress(one, state) for one in frames]
    assert [len(out) for out in outs] == [12, 3, 3, 3, 12, 3, 3, 3, 12]
    for number, earlier in ((1, 0), (2, 0), (3, 2), (5, 4), (6, 4), (7, 6)):
        likeness = cosine_similarity(frames[number].features, frames[earlier].features, dim=-1)
        assert outs[number].slot.tolist() == sorted(likeness.argsort()[:3].tolist()), number


def test_dycoke_starts_a_group_when_the_frame_changes_its_size() -> None:
    method = DyCoke()
    state = method.new_state()
    assert len(method.compress(frame(0), state)) == 12
    assert len(method.compress(frame(1, 8), state)) == 8
    assert len(method.compress(frame(2, 8), state)) == 2


def test_mean_pool_is_the_mean() -> None:
    given = frame(1)
    out = MeanPool().compress(given, MeanPool().new_state())
    assert len(out) == 1 and out.weight.item() == 12 and torch.allclose(out.features[0], given.features.mean(0))
    carrier = Carrier().compress(given, Carrier().new_state())
    assert carrier.slot.tolist() == [11] and torch.equal(carrier.features, out.features) and out.slot.tolist() == [0]


def test_a_scorer_keeps_its_past_when_the_budget_holds_all() -> None:
    spare, tight = STCPruner(keep=12), STCPruner(keep=4)
    one, other = spare.new_state(), tight.new_state()
    for number in range(3):
        spare.compress(frame(number, number=number), one)
        tight.compress(frame(number, number=number), other)
    assert torch.equal(one.history, other.history)
