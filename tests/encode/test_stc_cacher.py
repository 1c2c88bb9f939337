"""Our form of the Cacher: exact where nothing is left out, honest about what it left out, one result in any batch."""

import dataclasses

import pytest
import torch
from qwen_towers import FAMILIES, make_vision, moving_frames
from towers import make_frames, make_tower, regroup, run

from onlooker.core.errors import InputError
from onlooker.encode._cost import dense_flop, rows_flop
from onlooker.encode.full import Full
from onlooker.encode.stc_cacher import CacherState, STCCacher
from onlooker.encode.stc_cacher._change import changes, mean_lengths, most_changed, projection, sketch, thresholds
from onlooker.encode.stc_cacher._layer import reuse_layer
from onlooker.encode.stc_cacher._state import SideBySide, of, packed, unpacked
from onlooker.encode.stc_corrected import STCCorrected
from onlooker.encode.stc_published import STCPublished
from onlooker.models import shape_of

EXACT = STCCacher(tau=0, recompute_ratio=1, look_every=1, refresh_share=None, reference_dtype="model")
VARIANTS = [
    STCCacher(),
    STCCacher(reference_dtype="model"),
    STCCacher(reference_dtype="int4"),
    STCCacher(tau=0, recompute_ratio=0.25),
    STCCacher(look_every=1, refresh_share=None),
    STCCacher(look_every=5, interval=3),
    STCCacher(budget=0.3),
]
EACH = pytest.mark.parametrize("method", VARIANTS, ids=repr)
KINDS = ["siglip", "clip", *FAMILIES]


def seen(kind, frames=6, **more):
    """A tower and the embedded frames of a stream in front of it."""
    if kind in FAMILIES:
        vision = make_vision(kind)
        return vision.tower(6, 10), moving_frames(vision, frames, **more)
    module, tower = make_tower(kind)
    return tower, make_frames(module, frames, **more).detach()


def dense(tower, frames):
    with torch.no_grad():
        return Full().encode(tower, frames, [Full().new_state()] * len(frames))


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_everything_recomputed_equals_dense(kind):
    tower, frames = seen(kind)
    expected, state = dense(tower, frames), EXACT.new_state()
    for number, frame in enumerate(frames):
        encoded = EXACT.encode(tower, frame[None], [state])
        assert encoded.refreshed == (number == 0,)
        assert relative(encoded.hidden[0], expected.hidden[number]) <= 2e-6
        assert encoded.taps.keys() == tower.tap_layers
        for layer, tap in encoded.taps.items():
            assert relative(tap[0], expected.taps[layer][number]) <= 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_stay_near_dense_when_everything_is_recomputed(kind):
    tower, frames = seen(kind)
    method = dataclasses.replace(EXACT, reference_dtype="int8")
    assert relative(run(method, tower, frames), dense(tower, frames).hidden) < 0.01


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_frame_equals_dense_and_costs_nothing(kind, method):
    tower, frames = seen(kind, 1)
    expected, state = dense(tower, frames).hidden, method.new_state()
    for number in range(5):
        encoded = method.encode(tower, frames, [state])
        assert relative(encoded.hidden, expected) <= {"model": 1e-6, "int4": 0.25}.get(method.reference_dtype, 0.02)
        if number and not encoded.refreshed[0]:
            assert float(encoded.recomputed.sum()) == 0


@torch.no_grad()
@pytest.mark.parametrize("dim", [32, 40, 1152])
def test_four_bits_are_the_nearest_codes_with_a_scale_for_every_group(dim):
    rows = torch.randn(5, dim, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 5)[:, None]
    rows[3, :32] = 0
    codes, scale = packed(rows)
    groups = -(-dim // 32)
    assert codes.shape == (5, 16 * groups) and scale.shape == (5, groups) and scale.dtype == torch.float16
    back = unpacked(codes, scale, dim)
    steps = scale.float().repeat_interleave(32, 1)[:, :dim]
    assert ((back - rows).abs() <= steps * 0.5 * (1 + 1e-2)).all() and (back[3, :32] == 0).all()
    assert torch.equal(unpacked(*packed(back), dim), back)


def test_the_corrected_form_takes_no_four_bits():
    with pytest.raises(InputError, match="reference_dtype"):
        STCCorrected(reference_dtype="int4")


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_streams_in_different_phases_share_a_call(kind, method):
    tower, _ = seen(kind, 1)
    videos = [seen(kind, seed=s)[1] for s in range(3)]
    alone = [run(method, tower, video) for video in videos]
    states, together = [method.new_state() for _ in videos], [[] for _ in videos]
    for tick in range(8):  # stream s starts at tick s
        here = [s for s in range(3) if 0 <= tick - s < 6]
        batch = torch.stack([videos[s][tick - s] for s in here])
        encoded = method.encode(tower, batch, [states[s] for s in here])
        for row, s in enumerate(here):
            together[s].append(encoded.hidden[row])
    for s in range(3):
        assert relative(torch.stack(together[s]), alone[s]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_those_who_look_attend_to_the_mixed_keys_and_values(kind):
    """Checked against attention written out over what was stored, layer by layer, in float32."""
    tower, frames = seen(kind, 2)
    method, state = STCCacher(refresh_share=None, reference_dtype="model", look_every=1), CacherState()
    method.encode(tower, frames[:1], [state])
    hidden = frames[1:]
    for number, layer in enumerate(tower.layers):
        before = {name: of(state, name)[number].clone() for name in ("keys", "values", "mlp", "entered", "middle")}
        kept = SideBySide([state])
        before_it, count = sketch(hidden), method.recomputed_tokens(tower)
        output, after, chosen = reuse_layer(tower, number, hidden, before_it, kept, count)
        kept.write_back()
        assert relative(after, sketch(output)) < 1e-4
        normed = layer.norm(hidden)
        changed, mlp = chosen.changed[0, :, None], chosen.mlp[0, :, None]
        keys = torch.where(changed, layer.keys(normed)[0], before["keys"])
        values = torch.where(changed, layer.values(normed)[0], before["values"])
        assert relative(state.stored("keys", number, torch.float32), keys) < 1e-6
        middle = hidden + layer.out(layer.attend(layer.queries(normed), keys[None], values[None]))
        expected = middle + torch.where(mlp, layer.mlp(middle), before["mlp"])
        assert bool(chosen.looking.all()) and relative(output, expected) < 1e-5
        for name, rows, who in (("entered", hidden, changed), ("middle", middle, mlp)):
            moved = (sketch(rows)[0] - of(state, name)[number]).float().norm(dim=-1)
            assert not bool((moved[who[:, 0]] > 1e-2).any()), name
        hidden = output


@torch.no_grad()
def test_in_bfloat16_those_who_look_are_as_near_as_rounding_allows():
    module, tower = make_tower()
    frames = make_frames(module, 4).detach()
    wide = run(STCCacher(look_every=1, reference_dtype="model"), tower, frames)
    state, method = CacherState(), STCCacher(look_every=1)
    half = make_tower()[0].bfloat16()
    from onlooker.models._siglip import take_apart

    outputs = [method.encode(take_apart(half), frame[None].bfloat16(), [state]).hidden for frame in frames]
    assert outputs[0].dtype == torch.bfloat16 and of(state, "keys").dtype == torch.int8
    # Two roundings, of 8 bits each: a token near the threshold may also be chosen in one and not in the other.
    error = (torch.cat(outputs).float() - wide).norm() / wide.norm()
    assert float(error) < 0.1


@torch.no_grad()
def test_a_token_that_did_not_change_is_never_chosen_and_position_settles_ties():
    module, tower = make_tower()
    frame = make_frames(module, 1).detach()
    moved = frame.clone()
    moved[0, [3, 7, 11]] += 1.0
    length, tau = mean_lengths(sketch(frame)), torch.zeros(1)
    change = changes(sketch(moved), sketch(frame), tower)

    def chosen(change, tau, count):
        return most_changed(change, length, thresholds(length, tau), count, tower)[0].nonzero()[:, 0].tolist()

    assert chosen(change, tau, 20) == [3, 7, 11]
    even = torch.where(change > 0, 0.88 * length, 0.0)
    assert chosen(even, tau, 2) == [3, 7]
    assert chosen(even, torch.full((1,), 0.9), 20) == []
    assert chosen(torch.zeros_like(change), tau, 20) == []


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_groups_are_chosen_whole_and_the_cap_holds(kind):
    tower, frames = seen(kind, 3, change=1.0)
    if tower.group == 1:
        tower = regroup(tower, group=4, pinned=tower.num_tokens % 4)
    method, state = STCCacher(recompute_ratio=0.3, refresh_share=None), CacherState()
    for number, frame in enumerate(frames):
        encoded = method.encode(tower, frame[None], [state])
        if number:
            shares = encoded.recomputed[0, tower.pinned :].view(-1, tower.group)
            assert torch.equal(shares, shares[:, :1].expand_as(shares))
            most, looking = method.recomputed_tokens(tower), method.looking_tokens(tower) + tower.pinned
            limit = rows_flop(tower, most, looking, most) / dense_flop(tower)
            assert 0 < float(encoded.recomputed.mean()) <= limit + 1e-6


@torch.no_grad()
def test_everyone_has_looked_within_as_many_frames_as_there_are_turns():
    """After one change and a still picture, attention settles at what it would be if all looked, and then rests."""
    tower, frames = seen("siglip", 2)
    method = STCCacher(look_every=3, refresh_share=None, reference_dtype="model")
    always = dataclasses.replace(method, look_every=1)
    states = [CacherState(), CacherState()]
    for frame in (frames[0], frames[1], *[frames[1]] * 30):
        slow = method.encode(tower, frame[None], states[:1])
        fast = always.encode(tower, frame[None], states[1:])
    assert float(slow.recomputed.sum()) == float(fast.recomputed.sum()) == 0
    assert int(of(states[0], "due").sum()) == 0
    assert relative(of(states[0], "values")[0], of(states[1], "values")[0]) < 1e-5  # the first layer sees the same


@torch.no_grad()
def test_a_cut_is_computed_whole_and_a_clock_refreshes():
    tower, frames = seen("siglip", 6)
    other = seen("siglip", 1, seed=9)[1]

    def flags(method, frames):
        state = method.new_state()
        return [method.encode(tower, frame[None], [state]).refreshed[0] for frame in frames]

    shots = [frames[0], frames[0], other[0], other[0]]
    assert flags(STCCacher(), shots) == [True, False, True, False]
    assert flags(STCCacher(refresh_share=None), shots) == [True, False, False, False]
    assert flags(STCCacher(refresh_share=None, interval=2), frames) == [True, False] * 3
    assert flags(STCCacher(refresh_share=0), [*shots[:2], frames[1]]) == [True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("method", [STCCacher(), STCCacher(reference_dtype="int8"), STCCorrected()], ids=repr)
@torch.no_grad()
def test_a_whole_frame_writes_where_the_last_reference_lay_and_forgets_all_of_it(method):
    tower, frames = seen("siglip", 8)
    state, fresh = method.new_state(), method.new_state()
    run(method, tower, frames[:4], state)
    places = {name: tensor.data_ptr() for name, tensor in vars(state).items() if isinstance(tensor, torch.Tensor)}
    state.grid = ()  # as after a change of size: the next frame is computed whole
    assert torch.equal(run(method, tower, frames[4:], state), run(method, tower, frames[4:], fresh))
    for name, tensor in vars(fresh).items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(getattr(state, name), tensor), name
            assert getattr(state, name).data_ptr() == places[name] or name == "work", name


def test_another_size_is_a_new_reference():
    small, large = make_tower(image_size=24), make_tower(image_size=40)
    method, state = STCCacher(refresh_share=None), CacherState()
    for module, tower in (small, large, large, small):
        encoded = method.encode(tower, make_frames(module, 1).detach(), [state])
    assert encoded.refreshed == (True,)
    module, tower = small
    assert method.encode(regroup(tower, grid=(1, 9)), make_frames(module, 1).detach(), [state]).refreshed == (True,)
    assert STCCacher(look_every=7).encode(tower, make_frames(module, 1).detach(), [state]).refreshed == (True,)


@torch.no_grad()
def test_a_budget_moves_the_threshold_until_it_is_met():
    tower, frames = seen("siglip", 60, change=0.1)
    free = STCCacher(tau=0.2, recompute_ratio=0.5, look_every=2, refresh_share=None)
    held = dataclasses.replace(free, budget=0.3)

    def mean_of_last(method):
        state = method.new_state()
        shares = [method.encode(tower, frame[None], [state]).recomputed.mean() for frame in frames]
        return float(torch.stack(shares)[30:].mean()), float(of(state, "tau"))

    spent, tau = mean_of_last(free)
    met, moved = mean_of_last(held)
    assert tau == pytest.approx(0.2) and moved > 0.2
    assert spent > 0.36 and met == pytest.approx(0.3, abs=0.04)


@torch.no_grad()
def test_a_budget_is_met_within_a_shot_the_first_whole_frame_counted():
    tower, frames = seen("siglip", 16, change=0.1)
    held = STCCacher(tau=0.1, recompute_ratio=1, look_every=3, refresh_share=None, budget=0.4)
    state = held.new_state()
    shares = torch.stack([held.encode(tower, frame[None], [state]).recomputed.mean() for frame in frames])
    assert float(shares.mean()) <= 0.4 + 1 / 16
    assert float(shares[4:].mean()) == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("cut", [None, 17])
@torch.no_grad()
def test_a_budget_counts_the_whole_frames_of_the_clock_and_those_before_their_time(cut):
    tower, frames = seen("siglip", 60, change=0.1)
    held = STCCacher(tau=0.1, recompute_ratio=1, look_every=3, refresh_share=0.95, budget=0.45, interval=5)
    state, shares, taus, whole = held.new_state(), [], [], []
    for number, frame in enumerate(frames):
        encoded = held.encode(tower, (-frame if cut and number >= cut else frame)[None], [state])
        shares.append(encoded.recomputed.mean())
        whole.append(encoded.refreshed[0])
        taus.append(float(of(state, "tau")))
    expected = [n for n in range(60) if n % 5 == 0] if cut is None else [0, 5, 10, 15, *range(17, 60, 5)]
    assert [n for n, flag in enumerate(whole) if flag] == expected
    assert taus[0] == pytest.approx(0.1) and taus[5] == taus[4], "the clock's frames were counted on"
    if cut:
        assert taus[17] > taus[16], "a cut was not"
    assert float(torch.stack(shares)[20:].mean()) == pytest.approx(0.45, abs=0.05)


@EACH
@torch.no_grad()
def test_a_fork_and_a_saved_state_go_on_alike_and_apart(method):
    tower, frames = seen("siglip")
    state = method.new_state()
    run(method, tower, frames[:2], state)
    fork, loaded = state.fork(), method.new_state()
    loaded.load(*state.export())
    expected = run(method, tower, frames[2:], state)
    assert torch.equal(run(method, tower, frames[2:], fork), expected)
    assert torch.equal(run(method, tower, frames[2:], loaded), expected)


@EACH
@torch.no_grad()
def test_state_does_not_grow(method):
    module, tower = make_tower(image_size=16, dim=16, num_layers=2)
    frames, state = make_frames(module, 10).detach(), method.new_state()
    method.encode(tower, frames[:1], [state])
    early = state.num_bytes()
    for n in range(100):
        method.encode(tower, frames[n % 10][None], [state])
    assert state.num_bytes() == early > 0


@torch.no_grad()
def test_a_stream_of_a_large_tower_keeps_less_than_100_mib():
    """SigLIP-so400m at 384 pixels in 16 bits, 26 layers: counted on the very tensors, without running it."""
    state = CacherState()
    state.begin(torch.empty(729, 1152, dtype=torch.bfloat16, device="meta"), 26, 3, 8, 0.5)
    shape = shape_of("llava-onevision-7b")
    assert 83 * 2**20 < state.num_bytes() < 100 * 2**20
    assert STCCacher().state_bytes(26, 729, 1152) == state.num_bytes() == shape.reference_bytes()
    four = STCCacher(reference_dtype="int4").state_bytes(26, 729, 1152)
    assert four == shape.reference_bytes(4) < 57 * 2**20
    assert STCPublished().state_bytes(26, 729, 1152) == 79 * 729 * 1152 * 2


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "setting", "kept"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.int8),
        (torch.float32, "int8", torch.int8),
        (torch.float32, "int4", torch.uint8),
        (torch.bfloat16, "int4", torch.uint8),
        (torch.bfloat16, "model", torch.bfloat16),
    ],
)
def test_references_are_in_eight_bits_where_the_model_computes_in_sixteen(dtype, setting, kept):
    module, tower = make_tower(image_size=16, dim=16, num_layers=2)
    module.to(dtype)
    method, state = STCCacher(reference_dtype=setting), CacherState()
    hidden = torch.randn(1, tower.num_tokens, tower.dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    method.encode(tower, hidden, [state])
    assert of(state, "keys").dtype == kept and of(state, "entered").dtype == torch.float32
    assert state.num_bytes() == method.state_bytes(2, tower.num_tokens, tower.dim, hidden.element_size())


@torch.no_grad()
@pytest.mark.parametrize("method", [*VARIANTS, STCPublished(), STCPublished(selection="patch", reference="rolling")])
def test_bytes_are_told_before_a_stream_begins(method):
    tower, frames = seen("siglip", 2)
    state = method.new_state()
    run(method, tower, frames, state)
    assert state.num_bytes() == method.state_bytes(len(tower.layers), tower.num_tokens, tower.dim, 4)


@torch.no_grad()
def test_shares_and_costs_are_those_of_the_arithmetic():
    tower, frames = seen("siglip", 2)
    so400m = regroup(tower, num_tokens=729, dim=1152, mlp_dim=4304)
    state = CacherState()
    method = STCCacher(refresh_share=None)
    method.encode(tower, frames[:1], [state])
    share = float(method.encode(tower, frames[1:], [state]).recomputed.mean())
    work = [float(part) * tower.num_tokens for part in of(state, "work")]
    assert share == pytest.approx(rows_flop(tower, *work) / dense_flop(tower), rel=1e-5)
    assert rows_flop(so400m, 729, 729, 729) == pytest.approx(dense_flop(so400m))
    fixed = STCCacher(tau=0, recompute_ratio=0.25, look_every=4)
    # 182 changed, 183 others in turn: keys and values, queries with attention and output, MLP
    assert fixed.cost(so400m) == pytest.approx((182 * 2 * 1.935 + 365 * 6.319 + 182 * 14.458) / 729 / 24.647, abs=2e-3)
    assert STCCacher(budget=0.3).cost(so400m) == 0.3 and STCCacher(interval=1).cost(so400m) == 1


def test_the_projection_keeps_distances():
    rows = torch.randn(200, 1152, generator=torch.Generator().manual_seed(1))
    ratio = (rows @ projection(1152, torch.device("cpu"))).norm(dim=1) / rows.norm(dim=1)
    assert float((ratio - 1).abs().mean()) < 0.15
    torch.testing.assert_close(sketch(rows[0] + rows[1]), sketch(rows[0]) + sketch(rows[1]))


@pytest.mark.parametrize(
    "settings",
    [
        {"tau": -1.0},
        {"tau": float("nan")},
        {"recompute_ratio": 0.0},
        {"look_every": 0},
        {"budget": 0.0},
        {"refresh_share": 1.5},
        {"interval": -1},
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        STCCacher(**settings)
    with pytest.raises(InputError, match="budget"):
        STCCacher(tau=0, budget=0.3)
    with pytest.raises(InputError, match="whole frames alone"):
        STCCacher(budget=0.2, interval=5)


@pytest.mark.parametrize("method", [STCCacher(refresh_share=None), STCCorrected(reference_dtype="int8")], ids=repr)
def test_streams_shared_out_to_threads_are_computed_as_alone(method):
    tower, _ = seen("siglip", 1)
    videos = [seen("siglip", seed=s)[1] for s in range(3)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps = method.prepare(tower, videos[0][0], 3, lambda step: None)
        assert steps.threads == 2 and torch.get_num_threads() == 2
        assert list(steps.pool.map(lambda _: torch.get_num_threads(), range(8))) == [1] * 8
        states, together = [method.new_state() for _ in videos], []
        for frames in zip(*videos, strict=True):
            encoded = steps.encode(torch.stack(frames), states)
            together.append(encoded.hidden)
            assert encoded.refreshed == (len(together) == 1,) * 3
            assert encoded.recomputed.shape == (3, tower.num_tokens)
        with torch.inference_mode():
            steps.encode(torch.stack([video[0] for video in videos]), [method.new_state() for _ in videos])
    finally:
        torch.set_num_threads(before)
    for number, video in enumerate(videos):
        expected = run(method, tower, video)
        assert relative(torch.stack(together)[:, number], expected) < (0.02 if method.bits(video) else 1e-5)


PLAIN = [
    STCCacher(reference_dtype="model", refresh_share=None),
    STCCacher(reference_dtype="model", tau=0, recompute_ratio=0.25),
    STCCacher(reference_dtype="model", tau=0.1, look_every=1),
    STCCacher(reference_dtype="model", tau=0.2, look_every=5, interval=4, budget=0.3),
]


@pytest.mark.parametrize("method", PLAIN, ids=["few", "fixed", "always", "turns"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_for_a_cpu_equal_the_method(kind, method):
    """Streams in other phases side by side, and some that were run by the other form before."""
    tower, _ = seen(kind, 1)
    videos = [seen(kind, 7, seed=s)[1] for s in range(3)]
    ours, plain = ([method.new_state() for _ in videos] for _ in range(2))
    for tick in range(9):
        here = [s for s in range(3) if 0 <= tick - s < 7]
        batch = torch.stack([videos[s][tick - s] for s in here])
        wanted = method.encode(tower, batch, [plain[s] for s in here])
        run_it = method.encode if tick == 4 else method.encode_plainly
        got = run_it(tower, batch.transpose(1, 2).contiguous().transpose(1, 2), [ours[s] for s in here])
        assert got.refreshed == wanted.refreshed
        torch.testing.assert_close(got.recomputed, wanted.recomputed)
        assert relative(got.hidden, wanted.hidden) < 1e-5
        assert got.taps.keys() == wanted.taps.keys()
        for number, tap in got.taps.items():
            assert relative(tap, wanted.taps[number]) < 1e-5
    for mine, other in zip(ours, plain, strict=True):
        assert mine.age == other.age and mine.num_bytes() == other.num_bytes()
        for name in ("keys", "values", "mlp", "entered", "middle", "mlp_sketch"):
            assert relative(of(mine, name), of(other, name)) < 1e-4


def test_references_in_eight_bits_and_the_corrected_form_have_no_other_steps():
    tower, frames = seen("siglip", 2)
    for method in (STCCacher(reference_dtype="int8"), STCCorrected(reference_dtype="model")):
        ours, plain = method.new_state(), method.new_state()
        for frame in frames:
            got = method.encode_plainly(tower, frame[None], [ours])
            assert torch.equal(got.hidden, method.encode(tower, frame[None], [plain]).hidden)
