"""The shared selection step, the settings that mean the same in every pruner, and the two blind baselines."""

import math

import pytest
import torch

import onlooker.compress
from onlooker.compress import Random, STCPruner, Uniform, best, check_keep, num_kept
from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens

torch.set_num_threads(1)

PRUNERS = [Random, STCPruner, Uniform]


def frame(rows: int, cols: int, number: int = 0) -> VisualTokens:
    return VisualTokens.of_frame(torch.randn(rows * cols, 4), (rows, cols), number, number * 1.0)


@pytest.mark.parametrize("cls", PRUNERS)
@pytest.mark.parametrize(
    "wrong",
    [{"keep": 5, "keep_ratio": 0.3}, {"keep": 0}, {"keep": -3}, {"keep": 0.3}, {"keep": True}]
    + [{"keep_ratio": r} for r in (0, 1.5, -0.1, math.nan, "0.3")],
)
def test_a_wrong_budget_is_refused_with_advice(cls, wrong) -> None:
    with pytest.raises(InputError) as caught:
        cls(**wrong)
    assert caught.value.given and caught.value.do


def test_how_many_are_kept() -> None:
    assert num_kept(196, 60, None) == 60
    assert num_kept(196, None, 0.25) == 49
    assert num_kept(100, None, 0.29) == 29  # 28.999999999999996 as a product
    assert num_kept(10, None, None) == 3
    assert num_kept(10, 60, None) == 10
    assert num_kept(2, None, 0.1) == 1
    assert num_kept(0, 60, None) == num_kept(0, None, 0.5) == 0
    check_keep(None, 1.0)


def test_best_is_sorted_and_settles_ties_by_position() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best(scores, 2).tolist() == [[1, 2], [0, 1]]
    assert best(torch.zeros(1000), 500).tolist() == list(range(500))


@pytest.mark.parametrize(("rows", "cols"), [(14, 14), (3, 7), (1, 9), (9, 1), (24, 5)])
def test_uniform_keeps_exactly_what_it_says_in_order(rows: int, cols: int) -> None:
    tokens = frame(rows, cols)
    for keep in range(1, rows * cols + 3):
        slots = Uniform(keep=keep).compress(tokens, Uniform().new_state()).slot
        assert len(slots) == min(keep, rows * cols) and (slots.diff() > 0).all()
        assert slots[0] >= 0 and slots[-1] < rows * cols


@pytest.mark.parametrize("keep", [14, 49, 60, 98])
def test_uniform_reaches_every_part_of_the_picture(keep: int) -> None:
    kept = Uniform(keep=keep).compress(frame(14, 14), Uniform().new_state())
    quarters = torch.bincount((kept.row >= 7) * 2 + (kept.col >= 7).long(), minlength=4)
    assert (quarters - keep / 4).abs().max() <= 0.1 * keep + 2, quarters


def test_uniform_takes_a_thinned_frame_as_a_list() -> None:
    thinned = frame(4, 5).select(torch.tensor([1, 2, 5, 8, 13, 19]))
    assert Uniform(keep=3).compress(thinned, Uniform().new_state()).slot.tolist() == [2, 8, 19]


def test_random_depends_on_seed_and_frame_alone() -> None:
    def slots(seed: int, number: int) -> list[int]:
        method = Random(keep=5, seed=seed)
        return method.compress(frame(4, 5, number), method.new_state()).slot.tolist()

    assert slots(0, 3) == slots(0, 3)
    assert len({tuple(slots(seed, number)) for seed in range(4) for number in range(4)}) > 12


def test_random_is_fair() -> None:
    method, counts = Random(keep=5), torch.zeros(20)
    for number in range(2000):
        counts[method.compress(frame(4, 5, number), method.new_state()).slot] += 1
    assert (counts / 500 - 1).abs().max() < 0.2


@pytest.mark.parametrize("cls", PRUNERS)
def test_a_frame_without_tokens_passes(cls) -> None:
    empty = frame(4, 5).select(torch.tensor([], dtype=torch.int64))
    method = cls()
    state = method.new_state()
    assert len(method.compress(empty, state)) == 0
    assert len(method.compress(frame(4, 5, 1), state)) == 6


def test_the_room_knows_its_methods_by_class_name() -> None:
    assert onlooker.compress.STCPruner is STCPruner
    with pytest.raises(AttributeError):
        _ = onlooker.compress.NoSuchMethod
