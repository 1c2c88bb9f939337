"""Models without an adapter: the last frames, looked at anew at every question, behind the same face as all others."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from moving_pictures import make_frames
from PIL import Image
from tiny_others import FRAME_TOKENS, PlainProcessor, make_other_network, make_other_tokenizer

from onlooker.core.errors import InputError, ModelError, SessionClosed
from onlooker.core.events import Answer, Closed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine
from onlooker.engine.window_engine import WindowEngine
from onlooker.models import load, load_any
from onlooker.models._window import WindowModel

QUESTION = "which shape left first ?"


@pytest.fixture(scope="module", params=["smolvlm", "internvl"])
def other(request):
    tokenizer = make_other_tokenizer(request.param)
    network = make_other_network(request.param, tokenizer)
    return WindowModel(network, PlainProcessor(request.param, tokenizer), request.param)


@pytest.fixture
def three(other):
    return WindowEngine(other, memory="last_frames:frames=3")


def watch(engine, frames):
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return session


def stock_answer(model, frames, count=8):
    """The library's own `generate` on these frames."""
    content = [{"type": "image", "image": Image.fromarray(frame.image)} for frame in frames]
    inputs = model._processor.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        made = model._network.generate(**inputs, max_new_tokens=count, do_sample=False)[0]
    return model._processor.tokenizer.decode(made[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_answers_as_the_stock_model_about_the_last_frames(other, three):
    frames = make_frames(6)
    session = watch(three, frames)
    answer = session.ask(QUESTION, max_new_tokens=8)
    assert answer.text == stock_answer(other, frames[-3:])
    assert answer.usage.context_tokens == 3 * FRAME_TOKENS and 1 <= answer.usage.new_tokens <= 8
    assert answer.time_s == 5.0 and answer.citations == ()
    assert session.ask(QUESTION, max_new_tokens=8).text == answer.text, "request leaves no mark"
    assert stock_answer(other, frames[:3]) != answer.text


def test_times_forks_and_streams(other, three):
    frames = make_frames(6)
    session = watch(three, frames)
    assert session.ask(QUESTION, at=4.5, max_new_tokens=8).text == stock_answer(other, frames[3:5])
    assert session.ask(QUESTION, since=5.0, max_new_tokens=8).text == stock_answer(other, frames[5:])
    twin = session.fork()
    twin.push(Frame(frames[0].image, 9.0))
    assert session.ask(QUESTION, max_new_tokens=8).text == stock_answer(other, frames[-3:])
    assert twin.ask(QUESTION, max_new_tokens=8).text == stock_answer(other, [*frames[-2:], frames[0]])
    stream = session.stream(QUESTION, max_new_tokens=8)
    assert "".join(stream) == stream.answer.text == stock_answer(other, frames[-3:])


def test_several_sessions_and_questions_share_a_step(other, three):
    clips = [make_frames(4, seed=1), make_frames(4, seed=2)]
    sessions = [three.open(), three.open()]
    for pair in zip(*clips, strict=True):
        three.step(list(zip(sessions, pair, strict=True)))
    requests = [session.submit(QUESTION, decoding=Decoding(max_new_tokens=8)) for session in sessions]
    sessions[0].push(Frame(clips[1][0].image, 99.0))
    three.step_requests(requests)
    for request, clip in zip(requests, clips, strict=True):
        assert request.answer().text == stock_answer(other, clip[-3:])


def test_a_session_is_a_session(three):
    frames = make_frames(5)
    session = three.open()
    with pytest.raises(InputError, match="nothing to ask"):
        session.ask(QUESTION)
    picture = frames[0].image.copy()
    session.push(Frame(picture, 0.0))
    picture[:] = 0
    assert session.states["memory"].held[0].content.any(), "the caller's memory is the caller's"
    with pytest.raises(InputError, match="order of their times"):
        session.push(frames[0])
    with pytest.raises(InputError, match="words"):
        session.ask(" ")
    for frame in frames[1:]:
        session.push(frame)
    stats = session.stats()
    assert stats.frames == 5 and stats.memory_bytes["memory_state"] == 3 * 56 * 56 * 3
    request = session.submit(QUESTION)
    request.cancel()
    assert request.answer().finish == "cancelled"
    session.close()
    assert [type(event) for event in session.events()] == [FrameTaken] * 5 + [Answer, Closed]
    with pytest.raises(SessionClosed):
        session.push(Frame(frames[0].image, 10.0))


def test_sampling_repeats_with_a_seed_and_leaves_the_global_generator_alone(three):
    session = watch(three, make_frames(3))
    before = torch.get_rng_state()
    said = {session.ask(QUESTION, temperature=1.5, seed=seed, max_new_tokens=6).text for seed in (1, 1, 1)}
    assert len(said) == 1 and torch.equal(torch.get_rng_state(), before)
    assert len({session.ask(QUESTION, temperature=1.5, seed=seed, max_new_tokens=6).text for seed in range(5)}) > 1


def test_a_question_cannot_smuggle_in_pictures(other, three):
    mark = other._processor.tokenizer.convert_ids_to_tokens(other._placeholders[0])
    answer = watch(three, make_frames(2)).ask(f"{mark} what ?", max_new_tokens=2)
    assert answer.usage.context_tokens == 2 * FRAME_TOKENS


@pytest.mark.parametrize("methods", [{"encoder": "stc_cacher"}, {"compressor": "stc_pruner"}, {"memory": "rekv"}])
def test_methods_that_need_a_stream_are_refused(other, methods):
    with pytest.raises(ModelError, match=f"and {other.name} has no adapter"):
        WindowEngine(other, **methods)
    with pytest.raises(InputError, match="device_budget_bytes"):
        WindowEngine(other, device_budget_bytes=1)


def test_a_missing_package_is_named(other, tmp_path, monkeypatch):
    other._network.save_pretrained(tmp_path)

    def missing(*_, **__):
        raise ImportError("\nThis needs the Torchvision library.\nMore words.")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", missing)
    with pytest.raises(ModelError, match="needs the Torchvision library"):
        load_any(tmp_path, device="cpu")
    with pytest.raises(ModelError, match="no adapter for this model family"):
        load(tmp_path, device="cpu")


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torchvision", "num2words")),
    reason="the library's processors need torchvision and num2words",
)
@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_day_one_from_a_folder(family, tmp_path):
    tokenizer = make_other_tokenizer(family)
    make_other_network(family, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if family == "smolvlm":
        size = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False}
        kinds, more = ("SmolVLM", "SmolVLM"), {"image_seq_len": FRAME_TOKENS}
    else:
        size = {"size": {"height": 56, "width": 56}, "crop_to_patches": False}
        kinds, more = ("GotOcr2", "InternVL"), {"image_seq_length": FRAME_TOKENS}
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config |= {
            "extra_special_tokens": {
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            }
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    video = {"size": {"height": 56, "width": 56}} if family == "internvl" else {}
    settings = {
        "processor_class": f"{kinds[1]}Processor",
        **more,
        "image_processor": {"image_processor_type": f"{kinds[0]}ImageProcessor", **pixels, **size},
        "video_processor": {"video_processor_type": f"{kinds[1]}VideoProcessor", **pixels, **video},
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    engine = Engine.from_pretrained(str(tmp_path), device="cpu")
    assert isinstance(engine, WindowEngine)
    answer = watch(engine, make_frames(3)).ask(QUESTION, max_new_tokens=4)
    assert answer.usage.context_tokens == 3 * FRAME_TOKENS
    assert np.isfinite(answer.timing.total_s)
