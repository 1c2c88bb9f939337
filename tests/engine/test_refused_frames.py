"""A frame that could not be taken in leaves no trace: what follows is, to the bit, as if it had never been pushed."""

import contextlib
import dataclasses
from unittest import mock

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.contracts import Compressor
from onlooker.core.errors import CapacityError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine import Engine, methods
from onlooker.models import load

QUESTION = "what is happening in the video ?"


@dataclasses.dataclass
class Written(StreamState):
    sums: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))
    seen: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class WritesInPlace(Compressor):
    """Writes into the tensor and the list that its state holds, as a method may."""

    def new_state(self):
        return Written()

    def compress(self, tokens, state):
        state.sums += tokens.features.abs().sum()
        state.seen.append(int(state.sums) % 4)
        return tokens.select(torch.arange(state.seen[-1] + 1))


@pytest.fixture(scope="module", params=FAMILIES)
def family_model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


class Breaks(Exception):
    pass


@contextlib.contextmanager
def no_room_on_the_device(engine, session):
    session.store.device_budget_bytes = 1
    yield CapacityError
    session.store.device_budget_bytes = None


@contextlib.contextmanager
def no_room_on_the_host(engine, session):
    session.store.host_budget_bytes = 1
    yield CapacityError
    session.store.host_budget_bytes = None


def breaking(owner_of, name):
    @contextlib.contextmanager
    def broken(engine, session):
        with mock.patch.object(type(owner_of(engine)), name, side_effect=Breaks("in the middle of it")):
            yield Breaks

    return broken


@contextlib.contextmanager
def compression_breaks(engine, session):
    made_for, _ = engine.eye._compress
    with mock.patch.object(engine.eye, "_compress", (made_for, mock.Mock(side_effect=Breaks("in the middle of it")))):
        yield Breaks


FAULTS = {
    "device": no_room_on_the_device,
    "host": no_room_on_the_host,
    "embedding": breaking(lambda engine: engine.model, "embed_patches"),
    "projection": breaking(lambda engine: engine.model, "project"),
    "compression": compression_breaks,
    "placing": breaking(lambda engine: engine.model, "place_tokens"),
    "reading": breaking(lambda engine: engine.passes, "run"),
    "planning": breaking(lambda engine: engine.memory, "plan"),
}


def everything(session):
    """All that a session holds, as tensors and facts."""
    parts = (session.store, *session.states.values())
    tensors, facts = {}, [session.frames, session.time_s, session.totals.tokens_read, session.totals.frames]
    for number, part in enumerate(parts):
        held, told = part.export()
        tensors |= {f"{number}.{name}": tensor for name, tensor in held.items()}
        facts.append(told)
    return tensors, facts


def assert_same(one, other, tolerance=0.0):
    (tensors, facts), (others, told) = everything(one), everything(other)
    assert facts == told
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("compressor", ["stc_pruner:keep=2", WritesInPlace()], ids=["stc_pruner", "in_place"])
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
def test_a_frame_that_fails_anywhere_was_never_there(family_model, prepared, compressor):
    engine = Engine(
        family_model,
        encoder="stc_cacher:interval=3,recompute_ratio=0.25",
        compressor=compressor,
        memory="rekv:topk=2,recent=1,window_tokens=4",
    )
    if prepared:
        engine.prepare(most_frames=2, most_tokens=64, picture=(56, 56))
    frames, others = make_frames(2 + len(FAULTS)), make_frames(len(FAULTS), seed=5)
    session, calm = engine.open(), engine.open()
    for frame in frames[:2]:
        session.push(frame)
        calm.push(frame)
    for (name, fault), frame, other in zip(FAULTS.items(), frames[2:], others, strict=True):
        for picture in (frame, other):  # once the one that will come again, once another
            refused = Frame(picture.image, frame.time_s)
            with fault(engine, session) as error, pytest.raises(error):
                session.push(refused)
            assert_same(calm, session)
        assert session.push(frame) == calm.push(frame), name
        assert_same(calm, session)
    assert session.ask(QUESTION, max_new_tokens=4).text == calm.ask(QUESTION, max_new_tokens=4).text


def test_one_stream_without_room_leaves_those_beside_it_as_alone(tiny_model):
    engine = Engine(tiny_model, compressor="stc_pruner:keep=2", memory="full")
    full, other, alone = engine.open(), engine.open(), engine.open()
    for number, frame in enumerate(make_frames(9)):
        full.store.device_budget_bytes = 1 if number % 2 else None
        engine.step([(full, frame), (other, frame)])
        alone.push(frame)
    assert_same(other, alone, tolerance=1e-4)  # batches of two and of one round differently
    assert full.stats().frames == 5


@pytest.mark.parametrize("memory", ["full", "last_frames:frames=3"])
def test_work_is_not_done_twice_when_another_part_of_the_step_failed(tiny_model, memory):
    engine = Engine(tiny_model, compressor="stc_pruner:keep=2", memory=memory)
    session, frames = engine.open(), make_frames(3)
    session.push(frames[0])
    request = session.submit(QUESTION)
    with mock.patch.object(request, "pending", side_effect=Breaks("somebody else's part")), pytest.raises(Breaks):
        engine.step([(session, frames[1])], [request])
    with mock.patch.object(type(tiny_model), "preprocess", side_effect=AssertionError("seen twice")):
        session.push(frames[1])
    assert session.stats().frames == 2


def test_a_large_state_is_copied_only_where_the_frame_may_be_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(methods, "LARGE_STATE_BYTES", -1)
    engine = Engine(
        tiny_model, encoder="stc_cacher", compressor="identity", memory="rekv:topk=2,recent=1,window_tokens=4"
    )
    session, calm = engine.open(), engine.open()
    state = type(session.states["encoder"])
    assert not state.replaces, "it is written in place"
    frames = iter(make_frames(12))
    for _ in range(3):
        frame = next(frames)
        with mock.patch.object(state, "fork", side_effect=AssertionError("copied for nothing")):
            session.push(frame)
        calm.push(frame)
    for fault in (no_room_on_the_device, no_room_on_the_host):
        with fault(engine, session) as error, pytest.raises(error):
            session.push(next(frames))
        assert_same(calm, session)
    frame = next(frames)
    session.push(frame)
    calm.push(frame)
    assert_same(calm, session)
    # Anything else is no refusal: what was being written in place is dropped, and the next frame is computed whole.
    with FAULTS["projection"](engine, session) as error, pytest.raises(error):
        session.push(next(frames))
    assert not calm.push(Frame(frame.image, frame.time_s + 50.0)).refreshed
    assert session.push(Frame(frame.image, frame.time_s + 50.0)).refreshed
    assert session.stats().frames == 5
