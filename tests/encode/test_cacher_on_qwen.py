"""STC-Cacher on towers with windows, merge blocks, taps and frames of any size, with the promises kept on SigLIP."""

import pytest
import torch
from qwen_towers import FAMILIES, SlowQwenCacher, make_vision, moving_frames
from towers import run

from onlooker.encode.full import Full
from onlooker.encode.stc_published import CacherState, STCPublished

EACH = pytest.mark.parametrize("family", FAMILIES)
VARIANTS = [
    STCPublished(),
    STCPublished(interval=None),
    STCPublished(reference="rolling", age_weight=0.05),
    STCPublished(selection="shared"),
    STCPublished(selection="patch"),
    STCPublished(feature="value"),
    STCPublished(correct_stale=0.5),
    STCPublished(dense_tail_layers=1, recompute_ratio=0.6),
    STCPublished(layers=(0, 2)),
    STCPublished(global_tokens=3),
    STCPublished(refresh_on_cut=0.9, interval=8),
    STCPublished(round_to=16),
]
METHODS = pytest.mark.parametrize("method", VARIANTS, ids=repr)


@pytest.fixture(scope="module")
def visions():
    return {family: make_vision(family) for family in FAMILIES}


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@EACH
@pytest.mark.parametrize("interval, ratio", [(4, 0.25), (None, 0.1), (3, 0.5)])
@torch.no_grad()
def test_agrees_with_the_plain_reference(visions, family, interval, ratio):
    vision = visions[family]
    frames = moving_frames(vision, 5)
    slow = SlowQwenCacher(vision, 6, 10, interval, ratio)
    plain = torch.stack([slow.encode(frame) for frame in frames])
    assert relative(run(STCPublished(interval, ratio), vision.tower(6, 10), frames), plain) < 5e-6


@EACH
@pytest.mark.parametrize("selection", ["per_layer", "shared", "patch"])
@torch.no_grad()
def test_ratio_one_equals_dense(visions, family, selection):
    vision = visions[family]
    frames, tower = moving_frames(vision, 6), vision.tower(6, 10)
    dense = Full().encode(tower, frames, [Full().new_state()] * 6)
    method, state = STCPublished(recompute_ratio=1.0, selection=selection), CacherState()
    for number in range(6):
        encoded = method.encode(tower, frames[number][None], [state])
        assert relative(encoded.hidden[0], dense.hidden[number]) <= 2e-6
        assert encoded.taps.keys() == dense.taps.keys() == tower.tap_layers
        for layer, tap in encoded.taps.items():
            assert relative(tap[0], dense.taps[layer][number]) <= 2e-6


@EACH
@METHODS
@torch.no_grad()
def test_a_frame_equal_to_its_reference_equals_dense(visions, family, method):
    vision = visions[family]
    frames, tower = moving_frames(vision, 1).repeat(3, 1, 1), vision.tower(6, 10)
    dense = Full().encode(tower, frames, [Full().new_state()] * 3).hidden
    assert relative(run(method, tower, frames), dense) <= 5e-6


@EACH
@torch.no_grad()
def test_a_token_never_chosen_is_the_reference_plus_its_embedding_change(visions, family):
    vision = visions[family]
    frames, tower = moving_frames(vision, 2, change=0.2), vision.tower(6, 10)
    method, state = STCPublished(interval=None), CacherState()
    first = method.encode(tower, frames[:1], [state])
    second = method.encode(tower, frames[1:], [state])
    share = second.recomputed[0]
    assert all(len(set(four.tolist())) == 1 for four in share.view(-1, 4)), "merge blocks are chosen whole"
    never = share == 0
    assert 0 < int(never.sum()) < tower.num_tokens
    for new, old in ((second.hidden, first.hidden), *((second.taps[n], first.taps[n]) for n in tower.tap_layers)):
        assert relative(new[0][never], (old[0] + frames[1] - frames[0])[never]) < 2e-6


@EACH
@METHODS
@torch.no_grad()
def test_streams_in_different_phases_share_a_call(visions, family, method):
    vision = visions[family]
    tower, videos = vision.tower(6, 10), [moving_frames(vision, 5, seed=s) for s in range(3)]
    alone = [run(method, tower, video) for video in videos]
    states, together = [method.new_state() for _ in videos], [[] for _ in videos]
    for tick in range(7):  # stream s starts at tick s
        here = [s for s in range(3) if 0 <= tick - s < 5]
        batch = torch.stack([videos[s][tick - s] for s in here])
        encoded = method.encode(tower, batch, [states[s] for s in here])
        for row, s in enumerate(here):
            together[s].append(encoded.hidden[row])
    for s in range(3):
        assert relative(torch.stack(together[s]), alone[s]) < 5e-6


@EACH
@torch.no_grad()
def test_another_size_or_shape_in_mid_stream_is_a_new_reference(visions, family):
    vision, method, state = visions[family], STCPublished(refresh_on_cut=-1.0), CacherState()
    # The last two have as many tokens as the one before, in another shape.
    for size in ((84, 140), (56, 56), (140, 84), (84, 140), (28, 28), (28, 420)):
        tower = vision.tower(size[0] // 14, size[1] // 14)
        for number, frame in enumerate(moving_frames(vision, 2, size)):
            encoded = method.encode(tower, frame[None], [state])
            assert encoded.refreshed == (number == 0,)
            if number == 0:
                dense = Full().encode(tower, frame[None], [state]).hidden
                assert relative(encoded.hidden, dense) <= 2e-6


@EACH
@torch.no_grad()
def test_state_does_not_grow(visions, family):
    vision, method, state = visions[family], STCPublished(), CacherState()
    frames, tower = moving_frames(vision, 5, (56, 56)), vision.tower(4, 4)
    sizes = []
    for number in range(60):
        method.encode(tower, frames[number % 5][None], [state])
        sizes.append(state.num_bytes())
    assert sizes[1] == sizes[-1] == (3 * len(tower.layers) + 1) * 16 * 32 * 4


def test_gradients_flow_through_reference_and_frame(visions):
    vision = visions["qwen2_5_vl"]
    frames = moving_frames(vision, 2, (56, 56)).detach().requires_grad_()
    method, state, tower = STCPublished(), CacherState(), vision.tower(4, 4)
    method.encode(tower, frames[:1], [state])
    method.encode(tower, frames[1:], [state]).hidden.square().sum().backward()
    assert all(float(frame.abs().sum()) > 0 for frame in frames.grad)
    weight = vision.module.blocks[0].attn.qkv.weight
    assert all(float(third.abs().sum()) > 0 for third in weight.grad.chunk(3))


@torch.no_grad()
def test_windows_and_gates_are_counted(visions):
    """In a tower with windows a query meets fewer keys, so attention is a smaller share of the work."""
    vision = visions["qwen2_5_vl"]
    tower = vision.tower(16, 16)
    assert tower.mean_attended == pytest.approx((2 * 256 + 2 * 16) / 4)
    assert tower.mlp_dim == 72
    method = STCPublished(interval=None)
    tokens, dim, count = 256, 32, 64
    dense = 8 * tokens * dim**2 + 4 * tokens * tower.mean_attended * dim + 6 * tokens * dim * 48
    sparse = 2 * tokens * dim**2 + 6 * count * dim**2 + 4 * count * tower.mean_attended * dim + 6 * count * dim * 48
    assert method.cost(tower) == pytest.approx(sparse / dense)
