"""STC-Pruner: both published scores against plain loops, and none of the faults of the first code."""

import math

import pytest
import torch
from torch import Tensor

from onlooker.compress import STCPruner
from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens

torch.set_num_threads(1)

GRID = (6, 6)
BOTH = pytest.mark.parametrize("score", ["dual_anchor", "gaussian"])


def clip(seed: int, frames: int = 8, dim: int = 16, offset: float = 1.0) -> list[VisualTokens]:
    make = torch.Generator().manual_seed(seed)
    centre = offset * torch.randn(dim, generator=make)
    shapes = [torch.randn(36, dim, generator=make) + centre for _ in range(frames)]
    return [VisualTokens.of_frame(x, GRID, number, number * 1.0) for number, x in enumerate(shapes)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def plain_slots(frames: list[VisualTokens], method: STCPruner, keep: int) -> list[list[int]]:
    """The definition, token by token in float64."""
    past: list[Tensor] = []
    out = []
    for tokens in frames:
        x = tokens.features.double()
        recent = past if method.window is None else past[-method.window :]
        before = torch.stack(recent).mean(0) if recent else x.mean(0)
        if method.score == "gaussian":
            steady = sorted(range(x.shape[1]), key=lambda c: float(x[:, c].var(correction=0)))[: x.shape[1] // 2]
            unit = torch.stack([row[steady] / row[steady].norm() for row in x])
            anchors = before[steady] / before[steady].norm(), unit.mean(0)

            def like(u: Tensor, a: Tensor) -> float:
                return sum(math.exp(-float((u - a).square().sum()) / (2 * s)) for s in (0.125, 0.25, 0.5, 1, 2))

            scores = [-method.alpha * like(u, anchors[0]) - (1 - method.alpha) * like(u, anchors[1]) for u in unit]
        else:
            scores = [
                method.alpha * (1 - cosine(z, before)) + (1 - method.alpha) * (1 - cosine(z, x.mean(0))) for z in x
            ]
        ranked = sorted(range(len(x)), key=lambda j: (-scores[j], j))
        out.append(sorted(ranked[:keep]))
        past.append(x.mean(0))
    return out


def slots(frames: list[VisualTokens], method: STCPruner) -> list[list[int]]:
    state = method.new_state()
    return [method.compress(tokens, state).slot.tolist() for tokens in frames]


@BOTH
@pytest.mark.parametrize("window", [1, 3, 16, None])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_it_is_the_published_score(score, window, alpha) -> None:
    method = STCPruner(keep=9, score=score, window=window, alpha=alpha)
    frames = clip(3)
    assert slots(frames, method) == plain_slots(frames, method, 9)


@BOTH
def test_many_streams_at_once_equal_one_by_one(score) -> None:
    method = STCPruner(keep=10, score=score, window=3)
    clips = [clip(seed) for seed in range(5)]
    alone, together = [method.new_state() for _ in clips], [method.new_state() for _ in clips]
    for number in range(8):
        members = [b for b in range(5) if number >= b]  # streams join one after the other
        batch = [clips[b][number] for b in members]
        outs = method.compress_streams(batch, [together[b] for b in members])
        for b, tokens, out in zip(members, batch, outs, strict=True):
            assert torch.equal(out.slot, method.compress(tokens, alone[b]).slot)
            assert torch.equal(out.features, tokens.features[out.slot])
            torch.testing.assert_close(together[b].history, alone[b].history, rtol=0, atol=1e-6)


def test_streams_of_unlike_shapes_run_in_one_call() -> None:
    method = STCPruner(keep=4)
    wide = VisualTokens.of_frame(torch.randn(8, 16), (2, 4), 0, 0.0)
    half = VisualTokens.of_frame(torch.randn(36, 16).bfloat16(), GRID, 0, 0.0)
    batch = [clip(0)[0], wide, half, clip(1)[0]]
    outs = method.compress_streams(batch, [method.new_state() for _ in batch])
    for tokens, out in zip(batch, outs, strict=True):
        assert torch.equal(out.slot, method.compress(tokens, method.new_state()).slot)


def test_the_past_of_the_gaussian_score_is_read_on_the_channels_of_the_present() -> None:
    # Channels with distinct means and changing variances: the chosen half differs from frame to frame. When the
    # history keeps the channels apart, the past agrees with the present; in the first code the cosine fell to 0.04.
    make = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(64, generator=make)
    method, chosen = STCPruner(keep=5, score="gaussian"), []
    state = method.new_state()
    for number in range(12):
        spread = torch.rand(64, generator=make)
        x = means + spread * torch.randn(36, 64, generator=make)
        chosen.append(frozenset(x.var(0, correction=0).argsort()[:32].tolist()))
        method.compress(VisualTokens.of_frame(x, GRID, number, 0.0), state)
    assert len(set(chosen)) == 12
    assert state.history is not None and state.history.shape == (16, 64)
    assert cosine(state.history[-12:].mean(0), means) > 0.99


@BOTH
def test_the_present_is_not_part_of_its_own_past(score) -> None:
    method = STCPruner(keep=9, score=score, alpha=1.0)
    first, other, last = clip(1)[0], clip(2)[0], clip(7)[0]
    state, against = method.new_state(), []
    method.compress(first, state)
    before = state.fork()
    assert before.history is not None
    method.compress(last, state)
    assert torch.equal(before.history[-1], first.features.mean(0))
    for past in (first, other):
        fresh = method.new_state()
        method.compress(past, fresh)
        against.append(method.compress(last, fresh).slot.tolist())
    assert against[0] != against[1], "the past has no say"
    assert against[0] == plain_slots([first, last], method, 9)[1]


def test_only_the_window_counts() -> None:
    method = STCPruner(keep=9, window=2, alpha=1.0)
    tail = clip(5)[:3]
    assert slots([*clip(1), *tail], method)[-1] == slots([*clip(2), *tail], method)[-1]


@pytest.mark.parametrize(("window", "rows"), [(16, 16), (4, 4), (None, 1)])
def test_the_state_has_its_full_size_from_the_first_frame(window, rows) -> None:
    method = STCPruner(window=window)
    state = method.new_state()
    for tokens in clip(0, frames=20):
        method.compress(tokens, state)
        assert state.num_bytes() == rows * 16 * 4 + 4, "frame means, and how many frames there were"
        assert state.history.untyped_storage().nbytes() == rows * 16 * 4, "a view keeps something larger alive"


def test_a_budget_of_everything_changes_nothing_but_remembers() -> None:
    generous, usual = STCPruner(keep=36), STCPruner(keep=9)
    states = generous.new_state(), usual.new_state()
    for tokens in clip(4):
        assert generous.compress(tokens, states[0]) is tokens
        usual.compress(tokens, states[1])
    assert torch.equal(states[0].history, states[1].history)


@BOTH
def test_the_odd_one_out_is_kept(score) -> None:
    x = torch.ones(36, 16) + 0.01 * torch.randn(36, 16, generator=torch.Generator().manual_seed(0))
    x[17] = -x[17]
    state = STCPruner().new_state()
    assert STCPruner(keep=1, score=score).compress(VisualTokens.of_frame(x, GRID, 0, 0.0), state).slot.tolist() == [17]


@BOTH
def test_equal_tokens_are_settled_by_position(score) -> None:
    still = VisualTokens.of_frame(torch.ones(36, 16), GRID, 0, 0.0)
    assert slots([still, still], STCPruner(keep=3, score=score)) == [[0, 1, 2], [0, 1, 2]]


def test_no_gradient_is_kept() -> None:
    x = torch.randn(36, 16, requires_grad=True)
    method = STCPruner(keep=9)
    state = method.new_state()
    out = method.compress(VisualTokens.of_frame(x, GRID, 0, 0.0), state)
    assert out.features.requires_grad and not state.history.requires_grad


def test_states_made_in_inference_mode_go_on_outside() -> None:
    method = STCPruner(keep=9, window=2)
    state = method.new_state()
    with torch.inference_mode():
        method.compress(clip(0)[0], state)
    for tokens in clip(0)[1:]:
        method.compress(tokens, state)
    assert int(state.seen) == 8


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"alpha": -0.1}, {"window": 0}, {"score": "cosine"}])
def test_wrong_settings_are_refused_with_advice(wrong) -> None:
    with pytest.raises(InputError, match="try: "):
        STCPruner(**wrong)


def test_without_a_window_the_past_is_the_mean_of_all_frames() -> None:
    method, frames = STCPruner(keep=9, window=None), clip(6)
    state = method.new_state()
    for tokens in frames:
        method.compress(tokens, state)
    expected = torch.stack([tokens.features.mean(0) for tokens in frames]).mean(0)
    torch.testing.assert_close(state.history, expected[None], rtol=0, atol=1e-6)


@BOTH
def test_tokens_that_look_alike_are_told_apart_by_position(score):
    """A frame of two textures: rounding, which differs from device to device, must not choose among equal tokens."""
    make = torch.Generator().manual_seed(3)
    wall, thing = torch.randn(2, 32, generator=make)
    picture = wall.expand(36, -1).clone()
    picture[20:22] = thing
    kept = set()
    for _ in range(10):
        noisy = picture * (1 + 1e-7 * torch.randn(36, 1, generator=make))
        tokens = VisualTokens.of_frame(noisy, GRID, 0, 0.0)
        method = STCPruner(keep=6, score=score)
        kept.add(tuple((method.compress(tokens, method.new_state()).slot).tolist()))
    assert kept == {(0, 1, 2, 3, 20, 21)}
