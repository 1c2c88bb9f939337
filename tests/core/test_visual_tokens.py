"""Visual tokens keep their coordinates and every array along, however they shrink."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.core.tokens import VisualTokens, join

torch.set_num_threads(1)


def frame(number: int = 0, rows: int = 2, cols: int = 3, dtype: torch.dtype = torch.float32) -> VisualTokens:
    make = torch.Generator().manual_seed(number)
    count = rows * cols
    extras = {
        "deepstack": torch.randn(count, 2, 4, generator=make).to(dtype),
        "saliency": torch.rand(count, generator=make),
        "source": torch.arange(count) + 100 * number,
    }
    return VisualTokens.of_frame(
        torch.randn(count, 5, generator=make).to(dtype), (rows, cols), number, 0.5 * number, extras
    )


def test_a_frame_is_laid_out_in_raster_order() -> None:
    tokens = frame(3)
    assert len(tokens) == 6
    assert tokens.row.tolist() == [0, 0, 0, 1, 1, 1] and tokens.col.tolist() == [0, 1, 2, 0, 1, 2]
    assert tokens.slot.tolist() == list(range(6))
    assert tokens.frame.tolist() == [3] * 6 and tokens.time_s.tolist() == [1.5] * 6
    assert tokens.time_s.dtype == torch.float64 and tokens.weight.tolist() == [1.0] * 6


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(AssertionError, match="do not fill"):
        VisualTokens.of_frame(torch.zeros(5, 4), (2, 3), 0, 0.0)
    with pytest.raises(AssertionError, match="saliency"):
        VisualTokens.of_frame(torch.zeros(6, 4), (2, 3), 0, 0.0, {"saliency": torch.zeros(5)})


def test_select_takes_every_array_along() -> None:
    tokens, index = frame(), torch.tensor([1, 4, 5])
    kept = tokens.select(index)
    assert kept.slot.tolist() == [1, 4, 5] and kept.grid == (2, 3)
    assert torch.equal(kept.features, tokens.features[index])
    assert kept.extras.keys() == tokens.extras.keys()
    for name, value in kept.extras.items():
        assert torch.equal(value, tokens.extras[name][index])
    assert kept.select(torch.tensor([0, 2])).slot.tolist() == [1, 5]
    assert len(tokens.select(torch.tensor([], dtype=torch.int64))) == 0


def test_select_gives_a_copy() -> None:
    tokens = frame()
    tokens.select(torch.arange(6)).features.zero_()
    assert tokens.features.abs().sum() > 0


def test_merge_averages_by_weight_and_keeps_the_first_place() -> None:
    tokens = frame()
    merged = tokens.merge(torch.tensor([0, 1, 0, 2, 1, 0]))
    assert merged.slot.tolist() == [0, 1, 3] and merged.weight.tolist() == [3.0, 2.0, 1.0]
    torch.testing.assert_close(merged.features[0], tokens.features[[0, 2, 5]].mean(0))
    torch.testing.assert_close(merged.extras["deepstack"][1], tokens.extras["deepstack"][[1, 4]].mean(0))
    assert torch.equal(merged.features[2], tokens.features[3])
    assert merged.extras["source"].tolist() == [0, 1, 3], "numbers of things have no average"


def test_merging_in_steps_equals_merging_at_once() -> None:
    tokens = frame(dtype=torch.float64)
    steps = tokens.merge(torch.tensor([0, 0, 0, 1, 2, 2])).merge(torch.tensor([0, 0, 1]))
    once = tokens.merge(torch.tensor([0, 0, 0, 0, 1, 1]))
    assert steps.weight.tolist() == once.weight.tolist() == [4.0, 2.0]
    torch.testing.assert_close(steps.features, once.features, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=0, max_size=12))
def test_merge_conserves_weight(labels: list[int]) -> None:
    first = {label: i for i, label in reversed(list(enumerate(labels)))}
    numbers = {label: n for n, label in enumerate(sorted(first, key=lambda label: first[label]))}
    tokens = frame(0, 1, max(1, len(labels))).select(torch.arange(len(labels)))
    merged = tokens.merge(torch.tensor([numbers[label] for label in labels], dtype=torch.int64))
    assert len(merged) == len(numbers) and merged.weight.sum() == len(labels)
    assert merged.slot.tolist() == sorted(first.values())
    weighted = (merged.features * merged.weight[:, None]).sum(0)
    torch.testing.assert_close(weighted, tokens.features.sum(0), rtol=1e-4, atol=1e-4)


def test_merge_keeps_half_precision_and_averages_in_single() -> None:
    features = torch.full((256, 1), 1.0, dtype=torch.bfloat16)
    features[0] = 257.0
    merged = VisualTokens.of_frame(features, (16, 16), 0, 0.0).merge(torch.zeros(256, dtype=torch.int64))
    assert merged.features.dtype == torch.bfloat16 and merged.features.item() == 2.0


def test_frames_join_and_come_apart_again() -> None:
    parts = [frame(0), frame(1).select(torch.tensor([2])), frame(4).select(torch.tensor([0, 5]))]
    whole = join(iter(parts))
    assert len(whole) == 9 and whole.frame.tolist() == [0] * 6 + [1] + [4] * 2
    slices = whole.frame_slices()
    assert slices == [slice(0, 6), slice(6, 7), slice(7, 9)]
    for part, piece in zip(parts, slices, strict=True):
        assert torch.equal(whole.extras["deepstack"][piece], part.extras["deepstack"])
        assert torch.equal(whole.slot[piece], part.slot)


def test_no_tokens_have_no_frames() -> None:
    none = frame().select(torch.tensor([], dtype=torch.int64))
    assert none.frame_slices() == [] and len(none.merge(none.frame)) == 0


def test_unlike_parts_cannot_be_joined() -> None:
    with pytest.raises(AssertionError, match="grids"):
        join([frame(0), frame(1, 3, 2)])
    with pytest.raises(AssertionError, match="extras"):
        join([frame(0), VisualTokens.of_frame(torch.zeros(6, 5), (2, 3), 1, 0.5)])
    with pytest.raises(AssertionError, match="nothing"):
        join([])


def test_frames_of_many_streams_are_each_as_one_alone():
    features, saliency = torch.randn(3, 6, 4), torch.randn(3, 6)
    extras = [{"saliency": row} for row in saliency]
    whole = [{"cls": features[n, :1]} for n in range(3)]
    numbers, times = (2**40 + 7, 0, 3), (3.25, 1e6 + 1 / 3, 0.0)
    together = VisualTokens.of_frames(features, (2, 3), numbers, times, extras, whole)
    for n, one in enumerate(together):
        alone = VisualTokens.of_frame(features[n], (2, 3), numbers[n], times[n], extras[n], whole[n])
        for name, value in vars(alone).items():
            other = getattr(one, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other) and value.dtype == other.dtype, name
        assert one.grid == alone.grid and torch.equal(one.extras["saliency"], saliency[n])
        assert torch.equal(one.whole["cls"], alone.whole["cls"])
        owned = one.owned()
        owned.frame[0] = 5
        assert one.frame[0] == numbers[n]
    with pytest.raises(AssertionError, match="grid"):
        VisualTokens.of_frames(features, (2, 2), numbers, times, extras, whole)
