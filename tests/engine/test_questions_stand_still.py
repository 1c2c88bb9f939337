"""A question or a rule's look sees the memory as it was when it was put, whatever happens to the stream meanwhile."""

import dataclasses
import itertools

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.events import Closed
from onlooker.core.frame import Frame
from onlooker.core.spans import Plan, Recall
from onlooker.core.state import StreamState
from onlooker.engine import Decoding, Engine
from onlooker.engine.probing import Probe, YesNo
from onlooker.models import load

QUESTION = "what is happening in the video ?"


@dataclasses.dataclass
class Seen(StreamState):
    newest: list = dataclasses.field(default_factory=list)
    counts: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))


@dataclasses.dataclass(frozen=True)
class ByState(MemoryPolicy):
    """Chooses by what its state says, layer by layer, and lets most blocks go as soon as it has written them down."""

    scores_layers = True

    def new_state(self):
        return Seen()

    def plan(self, spans, state):
        state.newest = [span.id for span in spans if span.kind != "prefix"][-3:]
        state.counts += 1
        blocks = [span for span in spans if span.kind != "prefix"]
        parked = [span.id for span in blocks[:-1] if span.tier.value == "device"]
        return Plan(park=tuple(parked), forget=tuple(span.id for span in blocks[:-3] if span.id not in parked))

    def recall(self, spans, scores, state):
        may_see = {span.id for span in spans}
        return Recall(tuple(block for block in state.newest[: 1 + int(state.counts) % 2] if block in may_see))


MEMORIES = {
    "full": "full",
    "sliding_window": "sliding_window:window_tokens=10",
    "rekv": "rekv:topk=2,recent=1,window_tokens=10,max_parked=3",
    "shares": "rekv:topk=2,recent=1,first=1,window_tokens=10,max_parked=3,score=shares",
    "last_frames": "last_frames:frames=3",
    "by_state": ByState(),
}


@pytest.fixture(scope="module", params=[*((family, "plain") for family in FAMILIES), ("llava_onevision", "packed")])
def model_and_passes(request, tmp_path_factory):
    family, passes = request.param
    return load(make_family_folder(family, tmp_path_factory.mktemp(family)), device="cpu", pairs=False), passes


def watched(engine: Engine):
    session = engine.open()
    for frame in make_frames(6):
        session.push(frame)
    return session


def later():
    """Other frames without end, from 10 s on."""
    pictures = make_frames(8, seed=9)
    for number in itertools.count():
        yield Frame(pictures[number % len(pictures)].image, 10.0 + number)


def run(engine, request, between) -> None:
    while not request.done:
        between()
        if not request.done:
            engine.step_requests([request])


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_whatever_the_stream_does_meanwhile(model_and_passes, memory):
    model, passes = model_and_passes
    engine = Engine(model, encoder="full", compressor="stc_pruner:keep=3", memory=memory, passes=passes)
    words = YesNo.of(model)
    session = watched(engine)
    calm = session.ask(QUESTION, max_new_tokens=5)
    probe = Probe(session, QUESTION, words)
    run(engine, probe, lambda: None)
    for act in ("push", "step", "close"):
        session = watched(engine)
        request, look = session.submit(QUESTION, decoding=Decoding(max_new_tokens=5)), Probe(session, QUESTION, words)
        frames = later()

        def between(session=session, frames=frames, act=act):
            if act == "push":
                for _ in range(4):
                    session.push(next(frames))
            elif act == "close":
                session.close()

        if act == "step":
            while not (request.done and look.done):
                engine.step([(session, next(frames))], [one for one in (request, look) if not one.done])
        else:
            run(engine, look, between)
            run(engine, request, between)
        got = request.answer()
        assert got.text == calm.text and got.usage == calm.usage, act
        assert [(c.start_s, c.end_s) for c in got.citations] == [(c.start_s, c.end_s) for c in calm.citations], act
        assert look.probability == pytest.approx(probe.probability, abs=1e-6), act


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_a_question_that_outlives_its_session_ends_and_closed_is_the_last_event(tiny_model, memory):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=memory)
    session = watched(engine)
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=3))
    session.close()
    run(engine, request, lambda: None)
    assert request.answer().usage.new_tokens > 0
    assert isinstance(list(session.events())[-1], Closed)
    session = watched(engine)
    stopped = session.submit(QUESTION)
    session.close()
    stopped.cancel()
    assert stopped.answer().finish == "cancelled"


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_a_question_about_a_time_of_which_nothing_is_left_says_so(tiny_model, memory):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=memory)
    session = engine.open()
    for frame in itertools.islice(later(), 6):  # from 10 s to 15 s
        session.push(frame)
    for when in ({"at": 9.0}, {"at": 0.0}, {"since": 12.2, "at": 12.8}):
        with pytest.raises(InputError, match="nothing is remembered"):
            session.ask(QUESTION, **when)
    for when in ({"at": 99.0}, {"at": 15.001}, {"since": -1.0}, {"since": 16.0}, {"at": "9"}, {"since": True}):
        with pytest.raises(InputError, match="since to at"):
            session.ask(QUESTION, **when)
    assert session.ask(QUESTION, since=15.0, at=15.0, max_new_tokens=2).usage.context_tokens > 0
