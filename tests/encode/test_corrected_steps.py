"""The corrected form by kernels equals its plain form: streams join and leave, with padding, first frames beside."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_coded_steps import EACH_DEVICE, INTERPRETED, check, real_tower, together
from towers import make_frames, make_tower

from onlooker.encode.full import Full
from onlooker.encode.stc_cacher._state import of
from onlooker.encode.stc_corrected import STCCorrected
from onlooker.encode.stc_corrected._prepared import CorrectedEncoder
from onlooker.kernels import corrected
from onlooker.kernels.corrected_shape import SCALED
from onlooker.models._siglip import take_apart

ANEW = STCCorrected(attend_anew=True, reference_dtype="int8")
METHODS = {
    "fixed": replace(ANEW, tau=0.0, recompute_ratio=0.25),
    "turns": replace(ANEW, tau=0.2, look_every=3, interval=4, salience=0.5),
    "cuts": replace(ANEW, tau=0.3, salience=0, refresh_share=0.9),
    "either": replace(ANEW, tau=0.2, recompute_ratio=0.25, look_every=4, interval=5, stands_out="either"),
    "in_turn": replace(ANEW, tau=0.2, recompute_ratio=0.25, look_every=4, interval=5, attend_every=3),
}


@pytest.fixture
def ready(on, no_races):
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", "cpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


@EACH_DEVICE
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["siglip", "clip"])
@torch.no_grad()
def test_kernels_equal_the_method(on, ready, kind, name):
    module, _ = make_tower(kind, image_size=24, num_layers=2)
    videos = [make_frames(module, 6, seed=seed).to(on) for seed in range(3)]
    tower, made = take_apart(module.to(on)), []
    prepared = CorrectedEncoder(METHODS[name], tower, videos[0][0], 3, made.append, "torch")
    assert len(made) == len(set(made)) == 6
    check(together(METHODS[name], tower, prepared, videos, 1, 8))


def assert_kept_alike(kind, layer, ours, plain, like):
    """The same codes, but that a number between two of them (to some 1e-4 of a step) may be rounded to either. Even the
    plain form on a card and on a CPU differ in one such number here (docs/log.md)."""
    got, wanted = (state.stored(kind, layer, like) for state in (ours, plain))
    step = of(plain, "scales")[SCALED.index(kind), layer].float()[:, None]
    apart = (got - wanted).abs() / step
    off = [(*place, float(apart[tuple(place)])) for place in (apart > 0.1).nonzero().tolist()]
    assert len(off) <= 2 and float(apart.max()) < 1.1, f"{kind} of layer {layer}: token, channel, steps: {off}"


@EACH_DEVICE
@pytest.mark.parametrize("dim", [32, 96])
@torch.no_grad()
def test_everything_that_is_kept_is_what_the_plain_form_keeps(on, ready, dim):
    """Rows of 32 columns, and of 96, which are worked on as 64 and 32."""
    module, _ = make_tower("clip", image_size=24, num_layers=2, dim=dim)
    frames = make_frames(module, 3).to(on)
    tower, method = take_apart(module.to(on)), METHODS["turns"]
    prepared = CorrectedEncoder(method, tower, frames[0], 1, lambda step: None, "torch")
    ours, plain = method.new_state(), method.new_state()
    for frame in frames:
        prepared.encode(frame[None], [ours])
        method.encode(tower, frame[None], [plain])
    for kind in ("values", "mlp", "queries", "keys", "attention"):
        for layer in range(2):
            assert_kept_alike(kind, layer, ours, plain, frames[0])
    for name in ("entered", "middle", "attention_sketch", "mlp_sketch", "turn", "work"):
        got, wanted = (of(state, name).float() for state in (ours, plain))
        assert float((got - wanted).norm()) <= 5e-3 * float(wanted.norm()), name


@EACH_DEVICE
@torch.no_grad()
def test_streams_with_thresholds_of_their_own_choose_by_what_stands_out_or_did(on, ready, monkeypatch):
    """Of 49 tokens four programs find who stands out; ratios of the streams differ, down to nothing."""
    monkeypatch.setattr(corrected, "STANDING", 16)
    module, _ = make_tower("siglip", image_size=56, num_layers=2)
    videos = [make_frames(module, 4, seed=seed).to(on) for seed in range(3)]
    tower, method = take_apart(module.to(on)), replace(METHODS["either"], interval=None, recompute_ratio=0.5)
    assert method.has_kernels(tower, videos[0][0])
    prepared = CorrectedEncoder(method, tower, videos[0][0], 4, lambda step: None, "torch")
    ours, plain = ([method.new_state() for _ in videos] for _ in range(2))
    for number in range(4):
        batch = torch.stack([video[number] for video in videos])
        got, wanted = prepared.encode(batch, ours), method.encode(tower, batch, plain)
        assert float((got.hidden - wanted.hidden).norm() / wanted.hidden.norm()) < 2e-3
        assert got.recomputed is not None and wanted.recomputed is not None
        torch.testing.assert_close(got.recomputed, wanted.recomputed, rtol=1e-4, atol=1e-4)
        if number:
            few, many, none = got.recomputed.mean(1).tolist()
            assert 0 < few < many and none == 0
        for states in (ours, plain):
            for state, tau in zip(states, (0.6, 0.0, 9.0), strict=True):
                of(state, "tau").fill_(tau)


@EACH_DEVICE
@torch.no_grad()
def test_places_without_a_stream_are_left_alone(on, ready):
    """Six streams, then five in the step for six: what an earlier step left in the last place must not be worked on."""
    module, _ = make_tower("siglip", image_size=16, num_layers=1)
    frames = make_frames(module, 3).to(on)
    tower, method = take_apart(module.to(on)), METHODS["fixed"]
    prepared = CorrectedEncoder(method, tower, frames[0], 6, lambda step: None, "torch")
    ours, plain = ([method.new_state() for _ in range(6)] for _ in range(2))
    for number, count in enumerate((6, 6, 5)):
        batch = frames[number].expand(count, -1, -1)
        got = prepared.encode(batch, ours[:count]).hidden
        wanted = method.encode(tower, batch, plain[:count]).hidden
        assert float((got - wanted).norm() / wanted.norm()) < 2e-3


@EACH_DEVICE
@torch.no_grad()
def test_a_stream_goes_between_plain_and_prepared_steps(on, ready):
    """Prepared steps drop what corrections need, and plain ones attend anew then."""
    module, _ = make_tower("siglip", image_size=24, num_layers=2)
    frames = make_frames(module, 5).to(on)
    tower, anew = take_apart(module.to(on)), METHODS["fixed"]
    corrects = replace(anew, attend_anew=False)
    prepared = CorrectedEncoder(corrects, tower, frames[0], 1, lambda step: None, "torch")
    ours, plain = corrects.new_state(), anew.new_state()
    for number, frame in enumerate(frames):
        if number in (1, 2, 4):
            got = prepared.encode(frame[None], [ours]).hidden
        else:
            got = corrects.encode(tower, frame[None], [ours]).hidden
        assert (ours.attended is None) == (number > 0) and ours.age == number + 1
        wanted = anew.encode(tower, frame[None], [plain]).hidden
        assert float((got - wanted).norm() / wanted.norm()) < 2e-3


@EACH_DEVICE
@pytest.mark.parametrize("ratio", [1.0, 0.25])
@torch.no_grad()
def test_everything_recomputed_and_a_repeated_frame_are_dense_up_to_8_bits(on, ready, ratio):
    """The second costs nothing, and has attention branches in 4 bits where nothing is recomputed."""
    module, _ = make_tower("siglip", image_size=24, num_layers=2)
    frames = make_frames(module, 2).to(on)
    tower = take_apart(module.to(on))
    method = replace(ANEW, tau=0, recompute_ratio=ratio, look_every=1)
    prepared = CorrectedEncoder(method, tower, frames[0], 1, lambda step: None, "torch")
    wanted, state = Full().encode(tower, frames, [Full().new_state()] * 2).hidden, method.new_state()
    order = (0, 1) if ratio == 1 else (0, 0, 0)
    for turn, number in enumerate(order):
        got = prepared.encode(frames[number : number + 1], [state])
        assert got.refreshed == (turn == 0,) and got.recomputed is not None
        apart = float((got.hidden[0] - wanted[number]).norm() / wanted[number].norm())
        assert apart < (1e-5 if turn == 0 else 0.02 if ratio == 1 else 0.06)
        assert turn == 0 or float(got.recomputed.mean()) == pytest.approx(float(ratio == 1), abs=1e-5)


@pytest.mark.gpu
@torch.no_grad()
def test_graphs_in_half_precision_at_real_sizes():
    """As near to the plain form as rounding lets choices be, streams of other phases beside."""
    tower, like = real_tower("llava-onevision-7b")
    method = STCCorrected(tau=0.2, recompute_ratio=0.25, attend_anew=True, captured=True)
    prepared = method.prepare(tower, like[0], 5, lambda step: None)
    assert isinstance(prepared, CorrectedEncoder)
    make = torch.Generator("cuda").manual_seed(0)
    still = like + 0.3 * torch.randn(5, *like.shape[1:], device="cuda", dtype=like.dtype, generator=make)
    ours, plain = ([method.new_state() for _ in range(5)] for _ in range(2))
    for turn in range(5):
        frames = still.clone()
        where = torch.rand(5, tower.num_tokens, generator=make, device="cuda") < 0.15
        noise = torch.randn(still.shape, device="cuda", dtype=like.dtype, generator=make)
        frames = torch.where(where[..., None], noise * still.std() * 2, frames)
        here = [b for b in range(5) if turn == 0 or (b + turn) % 4]
        got = prepared.encode(frames[here], [ours[b] for b in here])
        wanted = method.encode(tower, frames[here], [plain[b] for b in here])
        assert got.refreshed == wanted.refreshed == (turn == 0,) * len(here)
        assert not torch.isnan(got.hidden).any()
        apart = (got.hidden.float() - wanted.hidden.float()).norm(dim=-1) / wanted.hidden.float().norm(dim=-1)
        assert float(apart.median()) < 0.02 and float(apart.square().mean().sqrt()) < 0.15, f"turn {turn}"
        assert got.recomputed is not None and wanted.recomputed is not None
        assert float((got.recomputed - wanted.recomputed).abs().mean()) < 0.03
