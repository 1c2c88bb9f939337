"""Cache-aware adaptation end to end on real video files: it learns, goes on where it stopped, and merges."""

import itertools
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
from recipes.cache_aware import __main__ as cache_aware
from recipes.cache_aware import sources
from recipes.cache_aware.reading import Asked
from recipes.cache_aware.student import AdaptSettings, LowRank, Shift, Student, error
from recipes.pocket.tokenizer import Encoder

SETTINGS = AdaptSettings(steps=4, frames=(4,), windows=2, fps=2.0, rank=4, questions=3, answer_tokens=3)
PREFIX = [5, 6]
CACHER = STCPublished(interval=4, recompute_ratio=0.25)


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


def asked(seed: int = 0) -> Asked:
    """Two windows with three questions each, one of which is none."""
    draw = torch.Generator().manual_seed(seed)
    ids, times = (torch.randint(10, 60, shape, generator=draw) for shape in ((2, 3, 5), (2, 4, 2)))
    sizes, last = torch.tensor([[5, 3, 4], [2, 0, 5]]), torch.tensor([[3, 1, 2], [3, -1, 0]])
    return Asked(pixels(seed), times, ids, sizes, last)


def make_student(folder: Path, settings: AdaptSettings = SETTINGS) -> Student:
    return Student(load(folder), PREFIX, settings)


def seen(student: Student, x: torch.Tensor, encoder: Full | STCPublished, on: bool) -> torch.Tensor:
    with student.switched(on):
        return student.features(x, encoder)


def test_questions_side_by_side_are_answered_as_alone(checkpoint):
    """The library's own forward pass, one question after the other, token after token."""
    network = load(checkpoint)
    student, batch = Student(network, PREFIX, SETTINGS), asked()
    with torch.no_grad(), student.switched(False):
        features = student.features(batch.pixels, Full())
        said, scores = student.reader.answers(features, batch)
        torch.testing.assert_close(student.reader.logits(features, batch, said), scores, atol=1e-4, rtol=1e-4)
        embed = network.get_input_embeddings()
        for window in range(2):
            for number in range(3):
                if not (size := int(batch.sizes[window, number])):
                    continue
                frames = [torch.cat([embed(batch.times[window, f]), features[window, f]])
                          for f in range(int(batch.last[window, number]) + 1)]  # fmt: skip
                question = [network.model.image_newline[None], embed(batch.ids[window, number, :size])]
                x = torch.cat([embed(torch.tensor(PREFIX)), *frames, *question])[None]
                for token in range(3):
                    hidden = network.model.language_model(inputs_embeds=x).last_hidden_state[0, -1]
                    alone = network.lm_head(hidden)
                    torch.testing.assert_close(scores[window, number, token], alone, atol=1e-4, rtol=1e-4)
                    assert said[window, number, token] == alone.argmax()
                    x = torch.cat([x, embed(alone.argmax()[None, None])], 1)


def test_tokens_behind_an_end_and_questions_that_are_none_do_not_count(checkpoint):
    student, batch = make_student(checkpoint), asked()
    end = student.reader._ends[0]
    said = torch.full((2, 3, 3), end + 1)
    said[0, 0, 0] = said[0, 1, 1] = end
    assert student.reader.counted(said, batch).tolist() == [
        [[True, False, False], [True, True, False], [True] * 3], [[True] * 3, [False] * 3, [True] * 3]
    ]  # fmt: skip


def test_adapters_start_as_nothing_and_only_they_learn(checkpoint):
    student, batch = make_student(checkpoint), asked()
    assert torch.equal(seen(student, batch.pixels, CACHER, True), seen(student, batch.pixels, CACHER, False))
    cached, dense = student.loss(batch, CACHER)
    assert cached > 0 and dense.abs() < 1e-5
    cached.backward()
    learning = {id(p) for p in student.parameters}
    for name, p in student.network.named_parameters():
        assert (p.grad is not None) == (id(p) in learning), name
    assert all(a.up.grad.abs().sum() > 0 for a in student.adapters if isinstance(a, LowRank))
    assert any(a.shift.grad.abs().sum() > 0 for a in student.adapters if isinstance(a, Shift))


@pytest.mark.parametrize("part", ["tower", "projector", "decoder"])
def test_only_the_named_parts_learn(checkpoint, part):
    student = make_student(checkpoint, replace(SETTINGS, parts=(part,)))
    roots = {"tower": "vision_tower", "projector": "multi_modal_projector", "decoder": "language_model"}
    adapted = {name for name, _ in student.network.named_parameters() if name.endswith(".original")}
    assert adapted and all(f".{roots[part]}." in name for name in adapted)


def test_adapting_brings_the_answers_nearer_to_dense_and_leaves_dense_alone(checkpoint):
    network, batch = load(checkpoint), asked()
    for p in network.parameters():  # small random weights say next to the same whatever they see
        p.data *= 6.0 if p.ndim == 2 else 1.0
    student = Student(network, PREFIX, replace(SETTINGS, dense_share=1.0))
    before = cache_aware.measure(student, batch)
    optimiser = torch.optim.AdamW(student.parameters, lr=3e-3)
    for _ in range(60):
        cached, dense = student.loss(batch, CACHER)
        (cached + dense).backward()
        optimiser.step()
        optimiser.zero_grad()
    found = cache_aware.measure(student, batch)
    assert before["lost_after"] == pytest.approx(before["lost_before"]) and before["same_dense"] == 1
    assert found["lost_before"] == before["lost_before"]
    assert found["lost_after"] < 0.3 * found["lost_before"]
    assert found["lost_dense"] < 0.3 * found["lost_before"]


def test_features_count_where_they_are_asked_to(checkpoint):
    batch = asked()
    students = [make_student(checkpoint, replace(SETTINGS, feature_weight=weight)) for weight in (0.0, 1.0)]
    plain, more = (student.loss(batch, CACHER) for student in students)
    assert more[0] > plain[0] and more[1].item() == pytest.approx(plain[1].item(), abs=1e-5)


def test_a_training_that_was_ended_goes_on(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(cache_aware, "SAVE_EVERY", 2)

    def ends_early():
        yield from (asked(seed) for seed in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_aware.adapt(make_student(checkpoint), ends_early(), tmp_path)
    assert torch.load(tmp_path / cache_aware.STATE, weights_only=False)["step"] == 2
    student = make_student(checkpoint)
    lines, made = cache_aware.adapt(student, (asked(seed) for seed in (2, 3)), tmp_path, log_every=1)
    assert [line["step"] for line in lines] == [3, 4] and made == 4
    whole = make_student(checkpoint)
    cache_aware.adapt(whole, (asked(seed) for seed in range(4)), tmp_path / "whole")
    for one, two in zip(student.parameters, whole.parameters, strict=True):
        assert torch.equal(one, two)


def test_a_training_that_ran_out_of_minutes_tells_the_steps_it_made(checkpoint, tmp_path):
    student = make_student(checkpoint, replace(SETTINGS, steps=1000, minutes=1e-9))
    assert cache_aware.adapt(student, iter(()), tmp_path) == ([], 0)


def test_end_to_end_on_videos(checkpoint, videos, tmp_path):
    out = tmp_path / "adapted"
    found = cache_aware.run(checkpoint, videos, out, SETTINGS)
    assert set(found) == {f"{kind}_{when}" for kind in ("lost", "same") for when in ("before", "after", "dense")}
    state = torch.load(out / cache_aware.STATE, weights_only=False)
    assert state["step"] == SETTINGS.steps
    # The merged checkpoint is a whole one, and sees and answers what the student did.
    network, batch = load(out), asked(1)
    again = make_student(checkpoint)
    for p, saved in zip(again.parameters, state["adapters"], strict=True):
        p.data.copy_(saved)
    merged = Student(network, PREFIX, SETTINGS)
    with torch.no_grad():
        ours, theirs = seen(again, batch.pixels, Full(), True), seen(merged, batch.pixels, Full(), False)
        torch.testing.assert_close(ours, theirs)
        said = torch.zeros(2, 3, 3, dtype=torch.int64)
        with again.switched(True):
            scores = again.reader.logits(ours, batch, said)
        with merged.switched(False):
            torch.testing.assert_close(merged.reader.logits(ours, batch, said), scores, atol=1e-4, rtol=1e-4)
    assert network.config.onlooker["cache_aware"]["steps_made"] == SETTINGS.steps
    embeddings = load(checkpoint).get_input_embeddings().weight
    assert torch.equal(network.get_input_embeddings().weight, embeddings)
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
    assert found["lost_before"] > 0
    assert (out / "model.safetensors").exists() and not (out / "model.int8.safetensors").exists()


def test_windows_of_pocket_world_have_questions_and_no_answers():
    """What the teacher is asked is the training questions as the pocket recipe writes them, cut before the answer."""
    settings, cpu = replace(SETTINGS, frames=(8, 16), questions=5), torch.device("cpu")
    made = sources.PocketWindows(("L0", "L3"), settings, 0)
    one, two = itertools.islice(made.batches(cpu, torch.float32), 2)
    assert one.pixels.shape[2:] == (3, 128, 128) and one.pixels.min() >= -1 and one.pixels.max() <= 1
    assert {len(x.pixels) * x.pixels.shape[1] for x in (one, two)} == {16}
    encoder = Encoder()
    for window in range(len(one.ids)):
        for ids, size, last in zip(one.ids[window], one.sizes[window], one.last[window], strict=True):
            if size:
                text = encoder._core.decode(ids[:size].tolist(), skip_special_tokens=False)
                assert text.endswith("<|im_end|>\n<|im_start|>assistant\n") and 0 <= last < one.pixels.shape[1]
            assert not ids[size:].any()


@pytest.mark.parametrize(("interval", "frames"), [(4, 8), (2, 5), (8, 4), (None, 3), (3, 7)])
def test_windows_at_once_are_the_stream_frame_after_frame(checkpoint, interval, frames):
    student, cacher = make_student(checkpoint), STCPublished(interval=interval, recompute_ratio=0.25)
    x = torch.randn(2, 1, 3, 56, 56) + 0.3 * torch.randn(2, frames, 3, 56, 56)
    states = [cacher.new_state() for _ in range(2)]
    with torch.no_grad():
        found = seen(student, x, cacher, False)
        for place, frame in enumerate(x.unbind(1)):
            hidden = cacher.encode(student.vision.tower, student.vision.embed_patches(frame), states).hidden
            torch.testing.assert_close(found[:, place], student.vision.project(hidden), atol=2e-5, rtol=1e-4)


def test_a_training_of_other_settings_is_not_gone_on_with(checkpoint, videos, tmp_path):
    cache_aware.run(checkpoint, videos, tmp_path / "out", replace(SETTINGS, steps=1))
    with pytest.raises(InputError, match="other settings"):
        cache_aware.run(checkpoint, videos, tmp_path / "out", replace(SETTINGS, steps=1, rank=2))


def test_a_folder_without_videos_and_another_family_are_refused(checkpoint, videos, tmp_path):
    with pytest.raises(InputError, match="no videos"):
        sources.find_videos(tmp_path / "nothing")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_5_vl"}))
    with pytest.raises(SystemExit, match="LLaVA-OneVision"):
        cache_aware.main(["--model", str(checkpoint), "--videos", str(videos), "--out", str(tmp_path / "o")])


def test_broken_files_are_left_out_and_short_ones_are_refused(videos, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match="long enough"):
        next(sources.windows([tmp_path / "broken.mp4"], SETTINGS, random.Random(0)))
    assert "left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="long enough"):
        next(sources.windows(sorted(videos.iterdir()), replace(SETTINGS, frames=(99,)), random.Random(0)))
    window = next(sources.windows(sorted(videos.iterdir()), SETTINGS, random.Random(0)))
    assert [time_s for time_s, _ in window] == sorted(time_s for time_s, _ in window)
    assert len(window) == 4 and window[0][1].shape == (64, 64, 3)


def test_the_error_is_a_share_of_what_there_is_to_tell():
    target = torch.randn(2, 3, 5, 7)
    assert error(target, target) == 0
    assert error(target.mean((0, 1, 2), keepdim=True).expand_as(target), target) == pytest.approx(1.0, abs=1e-5)


def test_questions_are_ours_or_those_of_a_file(checkpoint, videos, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("Who came?\n\nWhere is it?\n")
    assert sources.read_questions(file) == ("Who came?", "Where is it?")
    assert sources.read_questions(None) == sources.QUESTIONS
    file.write_text("\n")
    for bad in (file, tmp_path / "none.txt"):
        with pytest.raises(InputError, match="question"):
            sources.read_questions(bad)
