"""Memories that hold tokens: a question reads what they give, in packed passes, cites it, and leaves no mark."""

import numpy as np
import pytest
import torch
from stock_models import FAMILIES
from test_pairs import clip, close, scores_after, watch
from tiny import make_family_folder

from onlooker.core import registry
from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine import Decoding, Engine
from onlooker.models import load

QUESTION = "which shape left first ?"
NAMES = [name for name in registry.names("memory") if registry.make("memory", name).holds_tokens]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """Each family in its own form: the Qwen ones in pairs."""
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def engine_of(model, memory, **more):
    return Engine(model, encoder="full", compressor="identity", memory=memory, **more)


def exported(session):
    tensors, facts = session.states["memory"].export()
    return {name: tensor.clone() for name, tensor in tensors.items()}, facts


def same_state(session, before):
    tensors, facts = exported(session)
    assert facts == before[1] and all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", NAMES)
def test_passes_streams_and_questions_do_not_matter(model, name):
    """Packed equals plain, together equals apart, a question in flight keeps its moment, asking leaves no mark."""
    plain, packed = engine_of(model, name, passes="plain"), engine_of(model, name, passes="packed")
    clips = [clip(9, seed=1), clip(9, seed=2)]
    together = [packed.open(), packed.open()]
    for pair in zip(*clips, strict=True):
        packed.step(list(zip(together, pair, strict=True)))
    for session, frames in zip(together, clips, strict=True):
        session.note("a red square .", kind="speech")
        alone = watch(plain, frames)
        alone.note("a red square .", kind="speech")
        close(scores_after(session, engine=packed), scores_after(alone))
    assert packed.passes.counts.plain == 0
    session, before = together[0], exported(together[0])
    calm = session.ask(QUESTION, max_new_tokens=5)
    again = session.ask(QUESTION, max_new_tokens=5)
    assert (calm.text, calm.citations, calm.usage) == (again.text, again.citations, again.usage)
    assert calm.citations and calm.usage.context_tokens > 0
    same_state(session, before)
    flying = session.submit(QUESTION, decoding=Decoding(max_new_tokens=5))
    cancelled = together[1].submit(QUESTION, decoding=Decoding(max_new_tokens=5))
    rest = iter(clip(30, seed=3))
    for number in range(30):
        if not flying.done:
            packed.step([(session, Frame(next(rest).image, 20.0 + number))], [flying, *([] if number else [cancelled])])
        if not number:
            cancelled.cancel()
    assert flying.answer().text == calm.text and cancelled.answer().finish == "cancelled"


@pytest.mark.parametrize("name", NAMES)
def test_forked_saved_and_loaded_it_goes_on(model, name):
    engine = engine_of(model, name)
    session = watch(engine, clip(7))
    session.note("yes no none")
    wanted, twins = scores_after(session), [session.fork(), engine.load(session.export())]
    assert twins[1].stats().memory_bytes["memory_state"] == session.stats().memory_bytes["memory_state"] > 0
    for twin in twins:
        torch.testing.assert_close(scores_after(twin), wanted, rtol=0, atol=0)
        for frame in clip(12, seed=5)[8:]:
            twin.push(frame)
    torch.testing.assert_close(scores_after(session), wanted, rtol=0, atol=0)
    torch.testing.assert_close(scores_after(twins[0]), scores_after(twins[1]), rtol=0, atol=0)
    assert not torch.equal(scores_after(twins[0]), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_without_room_leaves_no_trace(model, name):
    free, held = engine_of(model, name).open(), []
    for frame in clip(40, size=(112, 112)):
        free.push(frame)
        held.append(free.stats().memory_bytes)
    most = max(one["memory_state"] for one in held)
    room = sum(size for part, size in held[-1].items() if part.startswith("device"))
    session, frames = engine_of(model, name, device_budget_bytes=room + most - 1).open(), clip(40, size=(112, 112))
    with pytest.raises(CapacityError, match="does not fit on the device"):
        for frame in frames:
            session.push(frame)
            before = exported(session)
    same_state(session, before)
    assert 1 < session.frames < 40
    with pytest.raises(CapacityError):
        session.push(frames[session.frames])
    same_state(session, before)


def test_a_question_without_room_is_refused_and_the_stream_goes_on(model):
    frames = clip(12, size=(112, 112))
    dense = watch(engine_of(model, "last_frames:frames=12"), frames)
    rows = dense.ask(QUESTION, max_new_tokens=1).usage.context_tokens
    room = sum(dense.stats().memory_bytes.values()) + rows * model.spec.kv_bytes_per_token // 2
    engine = engine_of(model, "last_frames:frames=12", device_budget_bytes=room)
    session = watch(engine, frames)
    with pytest.raises(CapacityError, match="a question reads"):
        session.ask(QUESTION)
    session.push(Frame(frames[0].image, 12.0))
    assert session.ask(QUESTION, since=12.0, max_new_tokens=2).citations


class Unordered(MemoryPolicy):
    """Reads backwards, which no question may."""

    holds_tokens = True

    def new_state(self):
        return registry.make("memory", "last_frames").new_state()

    def absorb(self, new, state):
        state.held = [new, *state.held]

    def reread(self, question, state):
        return state.held


class Silent(MemoryPolicy):
    """Says that it holds tokens, and not how."""

    holds_tokens = True

    def new_state(self):
        return StreamState()


def test_faulty_memories_are_refused_by_name(model):
    session = watch(engine_of(model, Unordered()), clip(5))
    with pytest.raises(InputError, match="order of its times"):
        session.ask(QUESTION)
    with pytest.raises(NotImplementedError, match="Silent holds tokens and does not say how"):
        watch(engine_of(model, Silent()), clip(3))


def test_nothing_later_than_the_question_is_read(model):
    session = watch(engine_of(model, "flash_vstream:clusters=4,details=1"), clip(10))
    cited = session.ask(QUESTION, at=8.0, max_new_tokens=2).citations
    assert all(one.end_s <= 8.0 for one in cited)
    with pytest.raises(InputError, match="nothing is remembered"):
        engine = engine_of(model, "last_frames:frames=2")
        watch(engine, clip(10)).ask(QUESTION, at=3.0)


def test_the_caller_may_reuse_its_picture(model):
    session = engine_of(model, "last_frames:frames=3", passes="plain").open()
    picture = np.zeros((56, 56, 3), dtype=np.uint8)
    for number, frame in enumerate(clip(4, size=(56, 56))):
        picture[:] = frame.image
        session.push(Frame(picture, float(number)))
    fresh = watch(engine_of(model, "last_frames:frames=3", passes="plain"), clip(4, size=(56, 56)))
    torch.testing.assert_close(scores_after(session), scores_after(fresh), rtol=0, atol=0)
