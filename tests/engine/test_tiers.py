"""Codecs of the store's tiers from the engine down: answers, statistics, saved sessions, and refusals."""

import pytest
import torch

from onlooker.core.errors import InputError, ModelError
from onlooker.core.frame import Frame
from onlooker.engine import Engine

MEMORY = "rekv:topk=3,recent=2,window_tokens=40"


def watched(model, frames, kv):
    engine = Engine(model, encoder="full", compressor="identity", memory=MEMORY, kv=kv)
    session = engine.open()
    for second, image in enumerate(frames):
        session.push(Frame(image, float(second)))
    return engine, session


@pytest.fixture(scope="module")
def frames():
    from onlooker.world import make_episode

    return [frame.image for frame in make_episode(3, "test", 12).frames(fps=1.0)]


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize("codec", ["int8", "int4", "fp8"])
def test_parked_blocks_take_fewer_bytes_and_answer(tiny_model, frames, codec, passes):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=MEMORY, kv=f"host={codec}", passes=passes)
    session = engine.open()
    for second, image in enumerate(frames):
        session.push(Frame(image, float(second)))
    _, exact = watched(tiny_model, frames, "")
    coded, plain = (one.stats().memory_bytes["host_rows"] for one in (session, exact))
    assert 0 < coded < 0.7 * plain
    first, again = (session.ask("what is there ?", max_new_tokens=4).text for _ in range(2))
    assert first == again
    twin = engine.load(session.export())
    assert twin.ask("what is there ?", max_new_tokens=4).text == first
    assert twin.stats().memory_bytes["host_rows"] == coded


def test_a_session_goes_on_under_another_codec(tiny_model, frames):
    _, session = watched(tiny_model, frames, "host=int8")
    other = Engine(tiny_model, encoder="full", compressor="identity", memory=MEMORY, kv="host=int4")
    twin = other.load(session.export())
    assert twin.stats().memory_bytes["host_rows"] < session.stats().memory_bytes["host_rows"]
    twin.push(Frame(frames[0], 12.0))
    twin.ask("what is there ?", max_new_tokens=2)


@pytest.mark.parametrize(
    "memory", ["full", "sliding_window:window_tokens=40", MEMORY, "infinipot_v:window_tokens=60,keep_tokens=30"]
)
@pytest.mark.parametrize("codec", ["int8", "int4", "fp8"])
def test_blocks_on_the_device_in_codes(tiny_model, frames, codec, memory):
    """Packed passes see what plain ones see, bytes shrink, and a saved session goes on the same."""
    told = []
    for passes in ("plain", "packed"):
        engine = Engine(
            tiny_model, encoder="full", compressor="identity", memory=memory, kv=f"device={codec}", passes=passes
        )
        sessions = [engine.open() for _ in range(2)]
        for second, image in enumerate(frames):
            engine.step([(session, Frame(image, float(second))) for session in sessions])
        answers = {session.ask("what is there ?", max_new_tokens=4).text for session in sessions}
        assert len(answers) == 1
        keys = torch.cat([one.parts["key_codes"].flatten() for one in sessions[0].store._window.coded.values()])
        told.append((answers, keys.float()))
        assert engine.load(sessions[0].export()).ask("what is there ?", max_new_tokens=4).text in answers
        assert sessions[0].fork().ask("what is there ?", max_new_tokens=4).text in answers
    assert told[0][0] == told[1][0]
    assert (told[0][1] != told[1][1]).float().mean() < 0.02, "to rounding, the same codes"


@pytest.mark.parametrize("kv", ["int8", "host=int3", "device=int3", "cellar=int8"])
def test_what_is_not_there_is_refused_before_anything_is_made(tiny_model, kv):
    with pytest.raises(InputError) as refused:
        Engine(tiny_model, kv=kv)
    assert "\n" not in str(refused.value)


def test_a_device_without_such_numbers_says_so(tiny_model, monkeypatch):
    import dataclasses

    import torch

    monkeypatch.setattr(tiny_model, "spec", dataclasses.replace(tiny_model.spec, device=torch.device("meta")))
    with pytest.raises(ModelError, match="8-bit floating point numbers; given: meta; try: use int8"):
        Engine(tiny_model, kv="host=fp8")
