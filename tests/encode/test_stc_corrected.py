"""The Cacher with exactly corrected attention: equal to what it stands for, in few bytes, one result in any batch."""

import dataclasses

import pytest
import torch
from test_stc_cacher import KINDS, dense, relative, seen
from towers import regroup, run

from onlooker.encode._cost import corrected_flop, dense_flop
from onlooker.encode.stc_cacher._state import of
from onlooker.encode.stc_corrected import CorrectedState, STCCorrected
from onlooker.encode.stc_corrected._state import packed, unpacked
from onlooker.encode.stc_corrected._step import unusual

EXACT = STCCorrected(tau=0, recompute_ratio=1, look_every=1, project_tau=0, reference_dtype="model")
NEVER = 250
VARIANTS = [
    STCCorrected(reference_dtype="model"),
    STCCorrected(reference_dtype="int8"),
    STCCorrected(tau=0, recompute_ratio=0.25, reference_dtype="model"),
    STCCorrected(look_every=2, interval=3, refresh_share=0.9, stands_out="either"),
    STCCorrected(budget=0.4, noise_quantile=0.25),
    STCCorrected(tau=0.1, recompute_ratio=0.25, first="unusual", stands_out="late", reference_dtype="int8"),
    STCCorrected(attend_anew=True, reference_dtype="int8"),
    STCCorrected(attend_anew=True, attend_every=2, look_every=4),
]
EACH = pytest.mark.parametrize("method", VARIANTS, ids=repr)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_recomputed_equals_dense(kind):
    tower, frames = seen(kind)
    expected, state = dense(tower, frames), EXACT.new_state()
    for number, frame in enumerate(frames):
        encoded = EXACT.encode(tower, frame[None], [state])
        assert encoded.refreshed == (number == 0,)
        assert relative(encoded.hidden[0], expected.hidden[number]) <= 2e-6
        for layer, tap in encoded.taps.items():
            assert relative(tap[0], expected.taps[layer][number]) <= 2e-6


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_corrected_attention_is_attention_over_the_mixed_keys_and_values(kind):
    """After every frame, in every layer: what is stored as attended is what the stored queries attend to now."""
    tower, frames = seen(kind)
    method = STCCorrected(tau=0.2, recompute_ratio=0.4, look_every=NEVER, reference_dtype="model")
    state, corrected = method.new_state(), 0.0
    for number, frame in enumerate(frames):
        method.encode(tower, frame[None], [state])
        corrected += float(of(state, "work")[3])
        for place, layer in enumerate(tower.layers):
            parts = (of(state, name)[place][None] for name in ("queries", "keys", "values"))
            assert relative(of(state, "attended")[place], layer.attend(*parts)[0]) < 2e-5, (number, place)
    assert corrected > 0.1, "nobody was corrected"


@torch.no_grad()
def test_unchanged_tokens_attend_anew_in_turn():
    """Of the layer's attention branches every other one is as it was kept, the others in the frame after."""
    tower, frames = seen("siglip")
    method = STCCorrected(
        tau=0, recompute_ratio=0.1, look_every=NEVER, attend_anew=True, attend_every=2, reference_dtype="model"
    )
    state, moved = method.new_state(), []
    for number in (0, 1, 2):
        before = None if state.attention is None else state.attention[0].clone()
        method.encode(tower, frames[number][None], [state])
        if before is not None:
            moved.append((of(state, "attention")[0] != before).any(-1))
            share = float(moved[-1].float().mean())
            assert 0.4 < share < 0.75 and float(of(state, "work")[4]) == pytest.approx(share, abs=0.1)
    assert bool((moved[0] | moved[1]).all()) and not bool(moved[0].all())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_anew_is_what_corrections_come_to(kind):
    """The other way to the same numbers, which keeps less."""
    tower, frames = seen(kind)
    corrects = STCCorrected(tau=0.2, recompute_ratio=0.4, project_tau=0, reference_dtype="model")
    anew = dataclasses.replace(corrects, attend_anew=True)
    ours, theirs = anew.new_state(), corrects.new_state()
    for frame in frames:
        got, wanted = (method.encode(tower, frame[None], [s]) for method, s in ((anew, ours), (corrects, theirs)))
        assert relative(got.hidden, wanted.hidden) < 2e-5
        for number, tap in got.taps.items():
            assert relative(tap, wanted.taps[number]) < 2e-5
        assert of(ours, "turn").equal(of(theirs, "turn"))
    assert ours.num_bytes() < theirs.num_bytes() and ours.attended is ours.sums is ours.missed is None
    spent, theirs_spent = of(ours, "work"), of(theirs, "work")
    assert float((spent - theirs_spent)[:3].abs().max()) < 1e-6
    assert float(spent[1] + 2 * spent[3]) == pytest.approx(1)


@torch.no_grad()
def test_a_state_that_kept_nothing_for_corrections_attends_anew():
    """Until its next whole frame, which keeps what corrections need again."""
    tower, frames = seen("siglip")
    method = STCCorrected(tau=0.2, recompute_ratio=0.4, project_tau=0, reference_dtype="model")
    state, whole = method.new_state(), method.new_state()
    for number, frame in enumerate(frames):
        if number == 1:
            state.attend_anew()
        got, wanted = (method.encode(tower, frame[None], [s]) for s in (state, whole))
        assert relative(got.hidden, wanted.hidden) < 2e-5
        assert (state.attended is None) == (number > 0)
    state.grid = ()
    assert method.encode(tower, frames[:1], [state]).refreshed == (True,) and state.attended is not None


@pytest.mark.parametrize("project_tau", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_branches_are_projections_of_what_was_attended_up_to_what_was_missed(kind, project_tau):
    tower, frames = seen(kind)
    method = STCCorrected(tau=0.2, recompute_ratio=0.4, project_tau=project_tau, reference_dtype="model")
    state, projected = method.new_state(), []
    for frame in frames:
        method.encode(tower, frame[None], [state])
        projected.append(float(of(state, "work")[4]))
        for place, layer in enumerate(tower.layers):
            attended, missed = of(state, "attended")[place], of(state, "missed")[place]
            assert float(missed.max()) <= project_tau * float(attended.norm(dim=-1).mean()) * 1.5
            apart = (layer.out(attended[None])[0] - of(state, "attention")[place]).norm(dim=-1)
            assert bool((apart[missed == 0] <= 1e-4 * attended.norm(dim=-1).mean()).all())
            assert project_tau or bool((missed == 0).all())
    assert projected[0] == 1 and (project_tau == 0 or min(projected[1:]) < 0.99)


@torch.no_grad()
def test_salience_lets_changes_of_what_stands_out_count_for_more():
    """Two tokens change by the same vector, one of which is unlike the others."""
    tower, frames = seen("siglip", 1)
    alike = frames.mean(1, keepdim=True) + 0.2 * frames
    alike[0, 3] += 10 * frames[0, 3]
    changed = alike.clone()
    changed[0, [3, 7]] += 0.3 * frames[0, 9]
    for salience, chosen in ((0.0, True), (2.0, False)):
        method = STCCorrected(tau=0.3, salience=salience, reference_dtype="model")
        state = method.new_state()
        method.encode(tower, alike, [state])
        before = of(state, "entered")[0].clone()
        method.encode(tower, changed, [state])
        moved = (of(state, "entered")[0] != before).any(-1)
        assert bool(moved[3]) and bool(moved[7]) is chosen


@pytest.mark.parametrize(("stands_out", "forgotten"), [("now", False), ("either", True)])
@torch.no_grad()
def test_the_ground_that_a_thing_left_does_not_keep_it(stands_out, forgotten):
    """A thing moves from one token to another; behind it lies the ground that was there before."""
    tower, frames = seen("siglip", 1)
    ground = frames.mean(1, keepdim=True) + 0.2 * frames
    there, gone = ground.clone(), ground.clone()
    there[0, 3] += frames[0, 3]
    gone[0, 7] += frames[0, 3]
    tau = 2 * float(frames[0, 3].norm() / there[0].norm(dim=-1).mean())
    method = STCCorrected(tau=tau, salience=2.0, stands_out=stands_out, reference_dtype="model")
    state = method.new_state()
    method.encode(tower, there, [state])
    before = of(state, "entered")[0].clone()
    method.encode(tower, gone, [state])
    moved = (of(state, "entered")[0] != before).any(-1)
    assert bool(moved[7]) and bool(moved[3]) is forgotten


@pytest.mark.parametrize(("first", "chosen"), [("largest", False), ("unusual", True)])
@torch.no_grad()
def test_a_change_unlike_the_others_comes_before_larger_ones(first, chosen):
    """Everything changes along one direction, as under a moving camera; one token a little along another."""
    tower, frames = seen("siglip", 1)
    now, then = frames.clone(), frames
    way, other = torch.randn(2, frames.shape[-1], generator=torch.Generator().manual_seed(4)) * frames.std()
    now[0] += torch.linspace(1.0, 2.0, frames.shape[1])[:, None] * way
    now[0, 5] = frames[0, 5] + 0.6 * other
    method = STCCorrected(tau=0.1, recompute_ratio=0.25, salience=0, first=first, reference_dtype="model")
    state = method.new_state()
    method.encode(tower, then, [state])
    before = of(state, "entered")[0].clone()
    method.encode(tower, now, [state])
    moved = (of(state, "entered")[0] != before).any(-1)
    assert int(moved.sum()) == method.recomputed_tokens(tower) and bool(moved[5]) is chosen


def test_how_unusual_a_change_is_equals_a_plain_derivation():
    """Tokens one by one, by the inverse of the spread; a token that did not change is not unusual."""
    tower, _ = seen("siglip", 1)
    then, now = torch.randn(2, 2, tower.num_tokens, 64, generator=torch.Generator().manual_seed(1))
    now[1, 3] = then[1, 3]
    got = unusual(now, then, tower)
    for number in range(2):
        change = (now[number] - then[number]).double()
        spread = torch.stack([torch.outer(row, row) for row in change]).mean(0)
        spread = spread + 0.1 * spread.trace() / 64 * torch.eye(64, dtype=torch.float64)
        wanted = torch.stack([(row @ spread.inverse() @ row).sqrt() for row in change])
        torch.testing.assert_close(got[number].double(), wanted, rtol=1e-4, atol=1e-5)
    assert float(got[1, 3]) == 0
    assert bool((unusual(then, then, tower) == 0).all())


@torch.no_grad()
def test_what_stood_out_behind_the_last_layer_counts():
    """Two tokens change alike and are alike at the first layer; of one the tower made something of its own."""
    tower, frames = seen("siglip", 1)
    ground = frames.mean(1, keepdim=True) + 0.2 * frames
    changed = ground.clone()
    changed[0, [3, 7]] += 0.3 * frames[0, 9]
    tau, moved = 0.5 * float(frames[0, 9].norm() / ground[0].norm(dim=-1).mean()), {}
    for stands_out in ("now", "late"):
        method = STCCorrected(tau=tau, salience=2.0, stands_out=stands_out, reference_dtype="model")
        state = method.new_state()
        method.encode(tower, ground, [state])
        last = of(state, "mlp_sketch")[-1]
        last[3] += 50 * last.norm(dim=-1).mean()
        before = of(state, "entered")[0].clone()
        method.encode(tower, changed, [state])
        moved[stands_out] = (of(state, "entered")[0] != before).any(-1)[[3, 7]].tolist()
    assert moved == {"now": [True, True], "late": [True, False]}


@torch.no_grad()
def test_noise_everywhere_is_no_change_and_a_cut_is_no_noise():
    tower, frames = seen("siglip", 2)
    noise = [
        0.7 * frames.std() * torch.randn(frames[:1].shape, generator=torch.Generator().manual_seed(n)) for n in range(8)
    ]
    shares: dict[float, list[float]] = {}
    for quantile in (0.0, 0.25):
        method = STCCorrected(tau=0.5, recompute_ratio=1, salience=0, noise_quantile=quantile, reference_dtype="model")
        state = method.new_state()
        for number, one in enumerate(noise):
            method.encode(tower, frames[int(number == 7)][None] + one, [state])
            shares.setdefault(quantile, []).append(float(of(state, "work")[0]))
    assert min(shares[0.0]) > 0.9, "there was too little noise"
    least = max(shares[0.25][2:7])
    assert least < 0.5 and shares[0.25][7] > 1.4 * least


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_are_what_attention_takes_the_softmax_of(kind):
    tower, frames = seen(kind, 1)
    layer = tower.layers[0]
    normed = layer.norm(frames)
    queries, keys, values = layer.queries(normed), layer.keys(normed), layer.values(normed)
    weights = layer.scores(queries, keys, None, None).softmax(-1)
    heads = values.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    assert relative((weights @ heads).transpose(1, 2).flatten(2), layer.attend(queries, keys, values)) < 1e-5
    asking, among = torch.tensor([5, 2]), torch.tensor([0, 7, 3])
    part = layer.scores(queries[:, asking], keys[:, among], asking, among)
    whole = layer.scores(queries, keys, None, None)[:, :, asking][..., among]
    assert torch.allclose(part, whole, atol=1e-5)


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_frame_equals_dense_and_costs_nothing(kind, method):
    tower, frames = seen(kind, 1)
    expected, state = dense(tower, frames).hidden, method.new_state()
    for number in range(5):
        encoded = method.encode(tower, frames, [state])
        in_full = not method.in_eight_bits(frames)
        assert relative(encoded.hidden, expected) <= (1e-6 if in_full else 0.06)  # attention branches in 4 bits
        if number and not encoded.refreshed[0]:
            assert of(state, "work").tolist() == [0, 0, 0, 0, 0]


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
        # 8 bits turn a difference in the last place of a batched product into one of a step, here and there.
        assert relative(torch.stack(together[s]), alone[s]) < (0.02 if method.reference_dtype == "int8" else 1e-5)


@torch.no_grad()
def test_tokens_of_whose_softmax_little_is_left_look_anew():
    """One token gathers all attention and then goes away: what is left of the sums would say nothing."""
    tower, frames = seen("siglip", 1)
    method = STCCorrected(tau=0.2, look_every=NEVER, reference_dtype="model")
    state = method.new_state()
    method.encode(tower, frames, [state])
    layer, place = tower.layers[0], 3
    keys = of(state, "keys")[0]
    keys[place] = 40 * keys[place]
    parts = tuple(of(state, name)[0][None] for name in ("queries", "keys", "values"))
    of(state, "attended")[0].copy_(layer.attend(*parts)[0])
    of(state, "sums")[0].copy_(layer.scores(parts[0], parts[1], None, None).logsumexp(-1)[0].T)
    moved = frames.clone()
    moved[0, place] += 3
    method.encode(tower, moved, [state])
    asked = of(state, "queries")[0][None]
    expected = layer.attend(asked, of(state, "keys")[0][None], of(state, "values")[0][None])[0]
    assert relative(of(state, "attended")[0], expected) < 1e-4


@torch.no_grad()
def test_two_hundred_corrections_on_rounded_references_do_not_add_up():
    tower, frames = seen("siglip", 40)
    expected = dense(tower, frames).hidden
    method = STCCorrected(tau=0.1, reference_dtype="int8")
    state, errors = method.new_state(), []
    for _ in range(6):
        made = run(method, tower, frames, state)
        errors.append(float((made - expected).norm() / expected.norm()))
    assert max(errors[2:]) < 1.1 * errors[1]  # the first time began with a whole frame


@torch.no_grad()
def test_in_bfloat16_it_is_as_near_as_rounding_allows():
    from towers import make_frames, make_tower

    from onlooker.models._siglip import take_apart

    module, tower = make_tower()
    frames = make_frames(module, 4).detach()
    wide = run(STCCorrected(reference_dtype="model"), tower, frames)
    state, method = CorrectedState(), STCCorrected()
    half = make_tower()[0].bfloat16()
    outputs = [method.encode(take_apart(half), frame[None].bfloat16(), [state]).hidden for frame in frames]
    assert outputs[0].dtype == torch.bfloat16 and of(state, "values").dtype == torch.int8
    error = (torch.cat(outputs).float() - wide).norm() / wide.norm()
    assert float(error) < 0.15


def test_four_bits_keep_a_row_within_half_a_step():
    rows = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    codes, scale = packed(rows)
    assert codes.shape == (50, 17) and codes.dtype == torch.uint8
    assert bool(((unpacked(codes, 33) * scale[:, None] - rows).abs() <= 0.5 * scale[:, None] + 1e-6).all())


def test_a_stream_of_a_large_tower_keeps_at_most_100_mib():
    """SigLIP-so400m at 384 pixels in 16 bits, 26 layers of 16 heads."""
    state = CorrectedState()
    state.begin(torch.empty(729, 1152, dtype=torch.bfloat16, device="meta"), 26, 16, True, 0.4)
    assert 90 * 2**20 < state.num_bytes() <= 100 * 2**20
    assert STCCorrected().state_bytes(26, 729, 1152) == pytest.approx(state.num_bytes(), rel=2e-3)


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
@torch.no_grad()
def test_a_fork_and_a_saved_state_go_on_alike_and_apart(method):
    tower, frames = seen("siglip", 6)
    state = method.new_state()
    run(method, tower, frames[:3], state)
    fork, loaded = state.fork(), method.new_state()
    loaded.load(*state.export())
    one, two, three = (run(method, tower, frames[3:], each) for each in (state, fork, loaded))
    assert torch.equal(one, two) and torch.equal(one, three)


@torch.no_grad()
def test_costs_are_those_of_the_arithmetic():
    tower, frames = seen("siglip", 2)
    so400m = regroup(tower, num_tokens=729, dim=1152, mlp_dim=4304)
    assert corrected_flop(so400m, 1, 1, 1, 0, 1) == pytest.approx(dense_flop(so400m))
    # 182 of 729 changed, 3 projections of these, their attention and twice their columns for all others; all outputs
    lean = (3 * 1.935 + 2.449 + 14.458) / 4 + 2 * 2.449 * 3 / 16 + 1.935
    quarter = corrected_flop(so400m, 0.25, 0.25, 0.25, 3 / 16, 1) - 0.25 * 2 * 729 * 1152**2
    assert quarter / 1e9 == pytest.approx(lean - 0.25 * 1.935, rel=2e-3)
    method, state = STCCorrected(), CorrectedState()
    method.encode(tower, frames[:1], [state])
    recomputed = method.encode(tower, frames[1:], [state]).recomputed
    assert recomputed is not None
    share = float(recomputed.mean())
    assert share == pytest.approx(float(method.spent(tower, state)), rel=1e-5) and 0 < share < 1
    assert method.cost(so400m) > dataclasses.replace(method, recompute_ratio=0.25).cost(so400m)
