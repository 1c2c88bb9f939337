"""Cache-aware adaptation end to end on real video files: it learns, goes on where it stopped, and merges."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_folder
from transformers import LlavaOnevisionForConditionalGeneration

from onlooker import models
from onlooker.core.errors import InputError
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.engine import Engine
from onlooker.world import make_episode, write_video
from recipes import cache_aware
from recipes.cache_aware import AdaptSettings, LowRank, Student, error

SETTINGS = AdaptSettings(steps=4, frames=4, windows=2, fps=2.0, rank=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        write_video(make_episode(seed, "train", 6.0, level="L1"), folder / f"{seed}.mp4", fps=4.0, size=(64, 64))
    return folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return make_folder(tmp_path / "given", num_layers=2)


def load(folder: Path) -> LlavaOnevisionForConditionalGeneration:
    return LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def pixels(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(2, 1, 3, 56, 56, generator=generator)
    return still + 0.3 * torch.randn(2, 4, 3, 56, 56, generator=generator)


def test_adapters_start_as_nothing_and_only_they_learn(checkpoint):
    student = Student(load(checkpoint), SETTINGS)
    x, cacher = pixels(), STCPublished(interval=4, recompute_ratio=0.25)
    assert torch.equal(student.features(x, cacher, True), student.features(x, cacher, False))
    cached, dense = student.loss(x, cacher)
    assert cached > 0.01 and dense == 0
    cached.backward()
    learning = {id(p) for adapter in student.adapters for p in adapter.parameters()}
    for name, p in student.vision._module.named_parameters():
        assert (p.grad is not None) == (id(p) in learning), name
    assert any(isinstance(a, LowRank) and a.up.grad.abs().sum() > 0 for a in student.adapters)


def test_adapting_brings_the_cacher_nearer_to_dense_and_leaves_dense_alone(checkpoint):
    student = Student(load(checkpoint), replace(SETTINGS, rate=3e-3))
    x, cacher = pixels(), STCPublished(interval=4, recompute_ratio=0.25)
    optimiser = torch.optim.AdamW([p for a in student.adapters for p in a.parameters()], lr=3e-3)
    for _ in range(60):
        cached, dense = student.loss(x, cacher)
        (cached + dense).backward()
        optimiser.step()
        optimiser.zero_grad()
    found = cache_aware.measure(student, x)
    assert found["cacher_after"] < 0.75 * found["cacher_before"]
    assert found["dense_after"] < 0.1 * found["cacher_before"]


def test_a_training_that_was_ended_goes_on(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_aware, "SAVE_EVERY", 2)

    def ends_early():
        yield from (pixels(seed) for seed in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_aware.adapt(Student(load(checkpoint), SETTINGS), ends_early(), tmp_path)
    assert torch.load(tmp_path / cache_aware.STATE, weights_only=False)["step"] == 2
    student = Student(load(checkpoint), SETTINGS)
    lines = cache_aware.adapt(student, (pixels(seed) for seed in (2, 3)), tmp_path, log_every=1)
    assert [line["step"] for line in lines] == [3, 4]
    whole = Student(load(checkpoint), SETTINGS)
    cache_aware.adapt(whole, (pixels(seed) for seed in range(4)), tmp_path / "whole")
    for one, two in zip(student.adapters, whole.adapters, strict=True):
        assert torch.equal(one.up, two.up)


def test_end_to_end_on_videos(checkpoint, videos, tmp_path):
    out = tmp_path / "adapted"
    found = cache_aware.run(checkpoint, videos, out, SETTINGS)
    assert set(found) == {"cacher_before", "cacher_after", "dense_after"}
    state = torch.load(out / cache_aware.STATE, weights_only=False)
    assert state["step"] == SETTINGS.steps
    # The merged checkpoint is a whole one, and sees what the student saw.
    network, x = load(out), pixels(1)
    again = Student(load(checkpoint), SETTINGS)
    for p, saved in zip((p for a in again.adapters for p in a.parameters()), state["adapters"], strict=True):
        p.data.copy_(saved)
    merged = Student(network, SETTINGS)
    with torch.no_grad():
        torch.testing.assert_close(merged.features(x, Full(), False), again.features(x, Full(), True))
    assert network.config.onlooker["cache_aware"]["steps"] == SETTINGS.steps
    for name, weight in load(checkpoint).model.language_model.state_dict().items():
        assert torch.equal(network.model.language_model.state_dict()[name], weight), name
    engine = Engine.from_pretrained(str(out), encoder="stc_published", device="cpu")
    with engine.open() as session:
        for frame in make_episode(0, "test", 4.0).frames(1.0, (64, 64)):
            session.push(frame)
        assert session.ask("what is there?").usage is not None


def test_a_pocket_model_adapts_on_its_own_world(tmp_path):
    """Weights in eight bits are read, clips are drawn on the spot, and the checkpoint that comes out is a plain one."""
    given, out = Path(models.__file__).parent / "pocket_naive", tmp_path / "adapted"
    settings = replace(SETTINGS, steps=2, fps=1.0)
    found = cache_aware.run(given, ("L0", "L2"), out, settings)
    assert found["cacher_before"] > 0.01
    assert (out / "model.safetensors").exists() and not (out / "model.int8.safetensors").exists()
    windows = cache_aware.world(("L3",), settings, torch.device("cpu"))
    one = next(windows)
    assert one.shape == (2, 4, 3, 128, 128) and one.min() >= -1 and one.max() <= 1
    assert torch.equal(one, next(cache_aware.world(("L3",), settings, torch.device("cpu"), workers=1)))
    assert not torch.equal(one, next(windows))


@pytest.mark.parametrize(("interval", "frames"), [(4, 8), (2, 5), (8, 4), (None, 3), (3, 7)])
def test_windows_at_once_are_the_stream_frame_after_frame(checkpoint, interval, frames):
    student, cacher = Student(load(checkpoint), SETTINGS), STCPublished(interval=interval, recompute_ratio=0.25)
    x = torch.randn(2, 1, 3, 56, 56) + 0.3 * torch.randn(2, frames, 3, 56, 56)
    states = [cacher.new_state() for _ in range(2)]
    with torch.no_grad():
        found = student.features(x, cacher, adapted=False)
        for place, frame in enumerate(x.unbind(1)):
            hidden = cacher.encode(student.vision.tower, student.vision.embed_patches(frame), states).hidden
            torch.testing.assert_close(found[:, place], student.vision.project(hidden), atol=2e-5, rtol=1e-4)


def test_what_moved_counts_more_and_references_count_once():
    target = torch.zeros(1, 4, 3, 2)
    target[0, 1, 0], target[0, 3, 1] = 1.0, 2.0
    weight = cache_aware.moved(target, 2)
    assert weight[0, 0].tolist() == weight[0, 2].tolist() == [1, 1, 1]
    assert weight[0, 1].tolist() == pytest.approx([1.2, 0, 0]) and weight[0, 3].tolist() == pytest.approx([0, 4.8, 0])
    off = target.clone()
    off[0, 1, 2] += 1.0
    assert error(off, target, weight) == 0 < error(off, target)


def test_the_language_model_says_what_matters_and_does_not_learn(checkpoint):
    network = load(checkpoint)
    student, x = Student(network, replace(SETTINGS, decoder_layers=1)), pixels()
    whole = len(network.model.language_model.layers)
    assert len(student.decoder.layers) == 1 and whole > 1
    cached, dense = student.loss(x, STCPublished(interval=4, recompute_ratio=0.25))
    assert cached > 0 and dense < 1e-6
    cached.backward()
    assert all(p.grad is None for p in network.model.language_model.parameters())
    assert any(a.up.grad.abs().sum() > 0 for a in student.adapters)
    assert len(network.model.language_model.layers) == whole


def test_a_training_of_other_settings_is_not_gone_on_with(checkpoint, videos, tmp_path):
    cache_aware.run(checkpoint, videos, tmp_path / "out", replace(SETTINGS, steps=1))
    with pytest.raises(InputError, match="other settings"):
        cache_aware.run(checkpoint, videos, tmp_path / "out", replace(SETTINGS, steps=1, rank=2))


def test_a_folder_without_videos_and_another_family_are_refused(checkpoint, videos, tmp_path):
    with pytest.raises(InputError, match="no videos"):
        cache_aware.find_videos(tmp_path / "nothing")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_5_vl"}))
    with pytest.raises(SystemExit, match="LLaVA-OneVision"):
        cache_aware.main(["--model", str(checkpoint), "--videos", str(videos), "--out", str(tmp_path / "o")])


def test_broken_files_are_left_out_and_short_ones_are_refused(videos, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match="long enough"):
        next(cache_aware.windows([tmp_path / "broken.mp4"], SETTINGS, random.Random(0)))
    assert "left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="long enough"):
        next(cache_aware.windows(sorted(videos.iterdir()), replace(SETTINGS, frames=99), random.Random(0)))
    window = next(cache_aware.windows(sorted(videos.iterdir()), SETTINGS, random.Random(0)))
    assert len(window) == 4 and window[0].shape == (64, 64, 3)


def test_the_error_is_a_share_of_what_there_is_to_tell():
    target = torch.randn(2, 3, 5, 7)
    assert error(target, target) == 0
    assert error(target.mean((0, 1, 2), keepdim=True).expand_as(target), target) == pytest.approx(1.0, abs=1e-5)
