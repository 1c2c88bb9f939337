"""Ages in buckets, and a linear map that finds them."""

import torch

from benchmarks.age_buckets import EXACT, WIDER, bucket_of, judged
from onlooker import models
from onlooker.evals import flow


def test_buckets_are_frames_and_then_wider():
    assert [bucket_of(age) for age in range(EXACT)] == list(range(EXACT))
    assert [bucket_of(age) for age in (24, 27, 28, 47, 48, 128, 400)] == [24, 24, 25, 27, 28, 31, 31]
    assert EXACT + len(WIDER) == 32


def test_what_lies_in_the_states_is_found_and_nothing_else():
    """States that hold the age in one direction each, and states of noise."""
    made, model = torch.Generator().manual_seed(0), models.random_model(models.shape_of("pocket"), "float32", "cpu")

    def rows(clips, tells):
        told = []
        for clip in clips:
            for age in range(0, 24, 2):
                state = 0.1 * torch.randn(40, generator=made)
                state[age] += 3.0 * tells
                told.append({"clip": clip, "age": age, "state": state, "text": 1.0})
        return told

    learn, test = [f"a{n}" for n in range(40)], [f"b{n}" for n in range(8)]
    found = judged(model, rows(learn, 1.0), rows(test, 1.0))
    assert found["right"] == 1.0 and found["error_frames"] == 0.0 and found["written"] == 1.0
    noise = judged(model, rows(learn, 0.0), rows(test, 0.0))
    assert noise["right"] < 0.4 and noise["gap"] < -0.5


def test_states_are_what_is_scored():
    torch.manual_seed(0)
    model = models.random_model(models.shape_of("pocket"), "float32", "cpu")
    sample = flow.Sample(
        torch.randn(7, model.spec.hidden_dim), torch.arange(7)[None].expand(model.spec.position_axes, -1),
        torch.full((7,), flow.QUESTION), torch.zeros(7, dtype=torch.int64), None,
    )  # fmt: skip
    states = flow.states_of(model, sample, {})
    assert states.shape == (1, model.spec.hidden_dim)
    torch.testing.assert_close(model.logits(states), flow.scores_of(model, sample, {}))
