import pytest
import torch
from slow_cacher import SlowCacher
from towers import make_frames, make_tower, regroup, run

from onlooker.core.errors import InputError
from onlooker.encode.full import Full
from onlooker.encode.stc_published import CacherState, STCPublished

KINDS = pytest.mark.parametrize("kind", ["siglip", "clip"])
VARIANTS = [
    STCPublished(),
    STCPublished(interval=2, recompute_ratio=0.5),
    STCPublished(interval=None),
    STCPublished(interval=0, reference="rolling"),
    STCPublished(reference="rolling", age_weight=0.05),
    STCPublished(selection="shared"),
    STCPublished(selection="shared", reference="rolling"),
    STCPublished(selection="patch"),
    STCPublished(selection="patch", reference="rolling", interval=None),
    STCPublished(feature="value"),
    STCPublished(feature="hidden", metric="l1"),
    STCPublished(metric="l2"),
    STCPublished(metric="dot"),
    STCPublished(correct_stale=0.5),
    STCPublished(dense_tail_layers=1, recompute_ratio=0.6),
    STCPublished(layers=(0, 2)),
    STCPublished(global_tokens=3),
    STCPublished(refresh_on_cut=0.9, interval=8),
    STCPublished(round_to=4),
]
EACH = pytest.mark.parametrize("method", VARIANTS, ids=repr)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@KINDS
@pytest.mark.parametrize("interval, ratio", [(4, 0.25), (3, 0.5), (None, 0.1), (2, 1.0)])
@torch.no_grad()
def test_agrees_with_the_plain_reference(kind, interval, ratio):
    module, tower = make_tower(kind)
    frames = make_frames(module, 7)
    slow = SlowCacher(module.encoder.layers, interval, ratio)
    plain = torch.stack([slow.encode(frame) for frame in frames])
    fast = run(STCPublished(interval, ratio), tower, frames)
    assert relative(fast, plain) < 2e-6


@pytest.mark.proves("stc", 1)
@KINDS
@pytest.mark.parametrize("selection", ["per_layer", "shared", "patch"])
@torch.no_grad()
def test_ratio_one_equals_dense(kind, selection):
    module, tower = make_tower(kind)
    frames = make_frames(module, 6)
    dense = Full().encode(tower, frames, [Full().new_state()] * 6).hidden
    fast = run(STCPublished(recompute_ratio=1.0, selection=selection), tower, frames)
    assert relative(fast, dense) <= 1e-6


@pytest.mark.proves("stc", 2)
@EACH
@torch.no_grad()
def test_a_frame_equal_to_its_reference_equals_dense(method):
    module, tower = make_tower()
    frames = make_frames(module, 1).repeat(3, 1, 1)
    dense = Full().encode(tower, frames, [Full().new_state()] * 3).hidden
    assert relative(run(method, tower, frames), dense) <= 2e-6


@torch.no_grad()
def test_a_token_never_chosen_is_the_reference_plus_its_embedding_change():
    module, tower = make_tower()
    frames = make_frames(module, 2, change=0.2)
    method, state = STCPublished(interval=None), CacherState()
    first = method.encode(tower, frames[:1], [state])
    second = method.encode(tower, frames[1:], [state])
    assert second.recomputed is not None
    never = second.recomputed[0] == 0
    assert 0 < int(never.sum()) < tower.num_tokens
    expected = first.hidden[0] + frames[1] - frames[0]
    assert relative(second.hidden[0][never], expected[never]) < 2e-6
    assert not torch.allclose(second.hidden[0][~never], expected[~never], atol=1e-3)


@EACH
@torch.no_grad()
def test_streams_in_different_phases_share_a_call(method):
    """Interleaved and batched, with refresh flags that differ, each stream is what it is alone."""
    module, tower = make_tower()
    videos = [make_frames(module, 6, seed=s) for s in range(3)]
    alone = [run(method, tower, video) for video in videos]
    states = [method.new_state() for _ in videos]
    together = [[] for _ in videos]
    for tick in range(8):  # stream s starts at tick s
        here = [s for s in range(3) if 0 <= tick - s < 6]
        batch = torch.stack([videos[s][tick - s] for s in here])
        encoded = method.encode(tower, batch, [states[s] for s in here])
        assert len(encoded.refreshed) == len(here)
        for row, s in enumerate(here):
            together[s].append(encoded.hidden[row])
    for s in range(3):
        assert relative(torch.stack(together[s]), alone[s]) < 2e-6


@torch.no_grad()
def test_one_call_may_hold_refresh_and_selective_rows():
    module, tower = make_tower()
    frames = make_frames(module, 3)
    method, old = STCPublished(), CacherState()
    method.encode(tower, frames[:1], [old])
    encoded = method.encode(regroup(tower, tap_layers=frozenset({0, 2})), frames[1:], [old, CacherState()])
    assert encoded.refreshed == (False, True)
    assert encoded.recomputed is not None
    assert float(encoded.recomputed[1].min()) == 1.0
    assert float(encoded.recomputed[0].mean()) == pytest.approx(6 / 25)
    assert torch.equal(encoded.taps[2], encoded.hidden)
    assert encoded.taps[0].shape == encoded.hidden.shape


@torch.no_grad()
def test_whole_frames_come_every_interval():
    module, tower = make_tower()
    frames = make_frames(module, 9)

    def flags(method):
        state = method.new_state()
        return [method.encode(tower, frame[None], [state]).refreshed[0] for frame in frames]

    assert flags(STCPublished(interval=4)) == [n % 4 == 0 for n in range(9)]
    assert flags(STCPublished(interval=1)) == [True] * 9
    assert flags(STCPublished(interval=None)) == flags(STCPublished(interval=0)) == [True] + [False] * 8


@torch.no_grad()
def test_another_frame_size_is_a_new_reference():
    small, large = make_tower(image_size=24), make_tower(image_size=40)
    method = STCPublished(refresh_on_cut=-1.0)
    state = method.new_state()
    for module, tower in (small, large, large, small):
        frame = make_frames(module, 1)
        encoded = method.encode(tower, frame, [state])
        dense = Full().encode(tower, frame, [state]).hidden
        assert relative(encoded.hidden, dense) <= 2e-6
    assert encoded.refreshed == (True,)
    module, tower = small
    same_count = method.encode(regroup(tower, grid=(1, 9)), make_frames(module, 1), [state])
    assert same_count.refreshed == (True,)


@torch.no_grad()
def test_a_cut_refreshes_early_and_restarts_the_count():
    module, tower = make_tower()
    shot, other = make_frames(module, 1, seed=1), make_frames(module, 1, seed=2)
    method, state = STCPublished(refresh_on_cut=0.95, interval=4), CacherState()
    seen = [method.encode(tower, f, [state]).refreshed[0] for f in (shot, shot, other, other, other, other, other)]
    assert seen == [True, False, True, False, False, False, True]


@EACH
@torch.no_grad()
def test_state_does_not_grow(method):
    module, tower = make_tower(image_size=16, dim=16, num_layers=3)
    frames, state = make_frames(module, 10), method.new_state()
    for n in range(12):
        method.encode(tower, frames[n % 10][None], [state])
    early = state.num_bytes()
    for n in range(100):
        method.encode(tower, frames[n % 10][None], [state])
    assert state.num_bytes() == early > 0


@torch.no_grad()
def test_state_does_not_grow_in_ten_thousand_frames():
    module, tower = make_tower(image_size=16, dim=8, num_layers=1)
    frames, method, state = make_frames(module, 10), STCPublished(), CacherState()
    sizes = []
    for n in range(10_000):
        method.encode(tower, frames[n % 10][None], [state])
        if n in (100, 9_999):
            sizes.append(state.num_bytes())
    assert sizes[0] == sizes[1] == (1 + 1 + 2) * 4 * 8 * 4  # of one layer; four tokens, eight channels, float32


@EACH
@torch.no_grad()
def test_a_fork_and_a_saved_state_go_on_alike(method):
    module, tower = make_tower()
    frames, state = make_frames(module, 6), method.new_state()
    run(method, tower, frames[:2], state)
    fork, loaded = state.fork(), method.new_state()
    loaded.load(*state.export())
    expected = run(method, tower, frames[2:], state)
    assert torch.equal(run(method, tower, frames[2:], fork), expected)
    assert torch.equal(run(method, tower, frames[2:], loaded), expected)


@torch.no_grad()
def test_the_reference_is_not_written_to():
    module, tower = make_tower()
    for method in (STCPublished(interval=None), STCPublished(interval=None, reference="rolling")):
        frames, state = make_frames(module, 3), CacherState()
        method.encode(tower, frames[:1], [state])
        before = [state.gate, state.values, state.trail if method.reference == "fixed" else state.sums]
        copies = [tensor.clone() for tensor in before]
        run(method, tower, frames[1:], state)
        assert all(torch.equal(a, b) for a, b in zip(before, copies, strict=True))
        assert (state.values is before[1]) == (method.reference == "fixed")


@torch.no_grad()
def test_rolling_reference_remembers_what_was_recomputed():
    module, tower = make_tower()
    first, second = make_frames(module, 2)
    method, state = STCPublished(interval=None, recompute_ratio=1.0, reference="rolling"), CacherState()
    run(method, tower, [first, second], state)
    fresh = CacherState()
    method.encode(tower, second[None], [fresh])
    assert relative(state.sums, fresh.sums) < 2e-6 and relative(state.gate, fresh.gate) < 2e-6


@torch.no_grad()
def test_groups_are_chosen_whole_and_pinned_tokens_always():
    module, tower = make_tower("clip", image_size=32)  # one class token and 16 patches
    grouped = regroup(tower, group=4)
    frames, state = make_frames(module, 2), CacherState()
    method = STCPublished(recompute_ratio=0.5)
    method.encode(grouped, frames[:1], [state])
    share = method.encode(grouped, frames[1:], [state]).recomputed
    assert share is not None and float(share[0, 0]) == 1.0
    assert all(len(set(four.tolist())) == 1 for four in share[0, 1:].view(4, 4))
    assert method.recomputed_tokens(grouped) == 5


@torch.no_grad()
def test_global_tokens_are_always_recomputed():
    module, tower = make_tower("clip")
    frames, state = make_frames(module, 2), CacherState()
    method = STCPublished(global_tokens=1)
    method.encode(tower, frames[:1], [state])
    share = method.encode(tower, frames[1:], [state]).recomputed
    assert share is not None and float(share[0, 0]) == 1.0


@torch.no_grad()
def test_half_precision_keeps_its_type():
    module, tower = make_tower()
    frames = make_frames(module.bfloat16(), 3)
    state = CacherState()
    for frame in frames:
        encoded = STCPublished().encode(tower, frame[None], [state])
    assert encoded.hidden.dtype == state.trail.dtype == torch.bfloat16
    assert encoded.recomputed.dtype == torch.float32


@EACH
def test_gradients_flow_through_reference_and_frame(method):
    module, tower = make_tower(image_size=24, num_layers=3)
    weight = module.encoder.layers[0].self_attn.v_proj.weight
    frames = make_frames(module, 2).detach().requires_grad_()
    states = [method.new_state(), method.new_state()]
    method.encode(tower, frames[:1].expand(2, -1, -1), states)
    method.encode(tower, frames[1:].expand(2, -1, -1), states).hidden.square().sum().backward()
    assert frames.grad is not None and weight.grad is not None
    assert float(frames.grad[1].abs().sum()) > 0 and float(weight.grad.abs().sum()) > 0
    if method.refresh_on_cut is None:
        assert float(frames.grad[0].abs().sum()) > 0


def test_gradients_match_the_plain_reference():
    module, tower = make_tower(image_size=24, num_layers=2)
    frames = make_frames(module, 3).detach()

    def gradients(step):
        module.zero_grad()
        x = frames.clone().requires_grad_()
        torch.stack([step(frame) for frame in x])[1:].square().mean().backward()
        return [x.grad, *(p.grad.clone() for p in module.encoder.parameters())]

    state, slow = CacherState(), SlowCacher(module.encoder.layers, None, 0.4)
    fast = STCPublished(interval=None, recompute_ratio=0.4)
    pairs = zip(
        gradients(lambda frame: fast.encode(tower, frame[None], [state]).hidden[0]),
        gradients(slow.encode),
        strict=True,
    )
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_gradients_of_ratio_one_match_dense():
    module, tower = make_tower(image_size=24)
    frames = make_frames(module, 2).detach()

    def gradient(method):
        x = frames.clone().requires_grad_()
        run(method, tower, x)[1].square().sum().backward()
        return x.grad[1]

    assert relative(gradient(STCPublished(recompute_ratio=1.0)), gradient(Full())) < 1e-5


def test_cost_is_the_published_one():
    """The table of FLOP reductions at 729 tokens, width 1152, MLP 4304 (26 layers)."""
    _, tower = make_tower()
    so400m = regroup(tower, num_tokens=729, dim=1152, mlp_dim=4304)
    for interval, ratio, reduction in (
        (2, 0.25, 34.6),
        (4, 0.25, 51.9),
        (None, 0.25, 69.1),
        (4, 0.1, 62.3),
        (8, 0.5, 40.4),
    ):
        assert 100 * (1 - STCPublished(interval, ratio).cost(so400m)) == pytest.approx(reduction, abs=0.06)
    assert STCPublished().recomputed_tokens(so400m) == 182
    assert STCPublished(round_to=16).recomputed_tokens(so400m) == 176
    assert STCPublished(round_to=8).recomputed_tokens(so400m) == 184
    assert STCPublished(round_to=500).recomputed_tokens(so400m) == 500
    assert STCPublished(round_to=1000).recomputed_tokens(so400m) == 729
    assert STCPublished(recompute_ratio=1.0).cost(so400m) == pytest.approx(1.0)
    tail = STCPublished(dense_tail_layers=1, recompute_ratio=0.6)
    assert tail.recomputed_tokens(so400m) < 437
    assert tail.cost(so400m) == pytest.approx(STCPublished(recompute_ratio=0.6).cost(so400m), abs=2e-3)
    assert tail.cost(so400m) <= STCPublished(recompute_ratio=0.6).cost(so400m) + 1e-9
    assert STCPublished(layers=(0,)).cost(so400m) > STCPublished().cost(so400m)


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": -1},
        {"recompute_ratio": 0.0},
        {"recompute_ratio": 1.5},
        {"layers": ()},
        {"layers": (-1,)},
        {"dense_tail_layers": -1},
        {"correct_stale": 2.0},
        {"age_weight": 1.0},
        {"round_to": 0},
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        STCPublished(**settings)


def test_settings_that_do_not_fit_the_tower_are_refused():
    module, tower = make_tower()
    frame = make_frames(module, 1)
    for method in (STCPublished(layers=(7,)), STCPublished(dense_tail_layers=3), STCPublished(dense_tail_layers=2)):
        with pytest.raises(InputError):
            method.recomputed_tokens(tower)
            method.encode(tower, frame, [method.new_state()])
