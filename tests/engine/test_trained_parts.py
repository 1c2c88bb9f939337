"""Trained parts of a model, with a state of each stream, and soft prefixes: a tiny random adapter on the families."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.compress import Scorer
from onlooker.core.contracts import Adapter
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.models import load

QUESTION = "what is happening in the video ?"
MEMORIES = ("full", "rekv:topk=2,recent=1,window_tokens=30", "last_frames:frames=4")


@dataclass
class Mean(StreamState):
    rows: torch.Tensor | None = None
    count: int = 0
    past: list[float] = field(default_factory=list)


class RunningMean(Adapter):
    """Adds a random linear map of the running mean of all frames, and says how new each token is."""

    name, offers = "running_mean", frozenset({"newness"})

    def __init__(self, width: int, version: str = "1") -> None:
        chosen = torch.Generator().manual_seed(0)
        self._weight, self.version = torch.randn(width, width, generator=chosen) / width**0.5, version

    def new_state(self):
        return Mean()

    def adapt(self, tokens, state):
        mean = tokens.features.float().mean(0)
        state.rows = mean if state.rows is None else state.rows + (mean - state.rows) / (state.count + 1)
        state.count += 1
        new = (tokens.features.float() - state.rows).norm(dim=-1)
        features = tokens.features + (state.rows @ self._weight).to(tokens.features.dtype)
        return replace(tokens, features=features, extras={**tokens.extras, "newness": new})


@dataclass(frozen=True)
class Newest(Scorer):
    """Keeps the tokens that the adapter calls new."""

    needs: ClassVar[frozenset[str]] = frozenset({"running_mean", "newness"})

    def new_state(self):
        return StreamState()

    def scores(self, features, batch, states, pruned):
        return torch.stack([tokens.extras["newness"] for tokens in batch])


def family(name, tmp_path, adapted=True, version="1"):
    model = load(make_family_folder(name, tmp_path), device="cpu", pairs=False)
    if adapted:
        model.attach(RunningMean(model.spec.hidden_dim, version))
    return model


def opened(model, memory="full", passes="plain", compressor="uniform:keep=4"):
    return Engine(model, encoder="full", compressor=compressor, memory=memory, passes=passes).open()


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_adapted_by_what_came_before(name, tmp_path):
    frames, answers = make_frames(8), []
    for adapted in (True, False):
        session = opened(family(name, tmp_path / str(adapted), adapted))
        for frame in frames:
            session.push(frame)
        span = session.store.spans[-1]
        answers.append(session.store.raw_keys(span.id).clone())
        if adapted:
            state = session.states["running_mean"]
            assert state.count == 8 and session.stats().memory_bytes["running_mean_state"] == state.num_bytes() > 0
    assert not torch.allclose(answers[0], answers[1])


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_streams_stay_apart_in_one_step_packed_or_not(name, memory, tmp_path):
    model, clips = family(name, tmp_path), [make_frames(6, seed=seed) for seed in (0, 5)]
    told = []
    for passes in ("plain", "packed"):
        engine = Engine(model, encoder="full", compressor="uniform:keep=4", memory=memory, passes=passes)
        together, alone = [engine.open(), engine.open()], engine.open()
        for pair in zip(*clips, strict=True):
            engine.step(list(zip(together, pair, strict=True)))
        for frame in clips[1]:
            alone.push(frame)
        told.append([session.ask(QUESTION, max_new_tokens=4).text for session in (*together, alone)])
        assert told[-1][1] == told[-1][2]
        torch.testing.assert_close(together[1].states["running_mean"].rows, alone.states["running_mean"].rows)
    assert told[0] == told[1]


@pytest.mark.parametrize("memory", MEMORIES)
def test_its_state_is_forked_saved_and_loaded(memory, tmp_path):
    model, frames = family("llava_onevision", tmp_path), make_frames(10)
    engine = Engine(model, encoder="full", compressor="uniform:keep=4", memory=memory)
    session = engine.open()
    for frame in frames[:6]:
        session.push(frame)
    twin, loaded = session.fork(), engine.load(session.export())
    for frame in frames[6:]:
        for one in (session, twin, loaded):
            one.push(frame)
    states = [one.states["running_mean"] for one in (session, twin, loaded)]
    assert [state.count for state in states] == [10] * 3 and torch.equal(states[0].rows, states[2].rows)
    assert len({one.ask(QUESTION, max_new_tokens=4).text for one in (session, twin, loaded)}) == 1


def test_a_session_of_other_weights_is_refused(tmp_path):
    session = opened(family("llava_onevision", tmp_path))
    session.push(make_frames(1)[0])
    other = Engine(
        family("llava_onevision", tmp_path, version="2"), encoder="full", compressor="uniform:keep=4", memory="full"
    )
    with pytest.raises(InputError, match="another model"):
        other.load(session.export())


def test_a_frame_that_was_refused_leaves_no_trace_in_it(tmp_path, monkeypatch):
    session = opened(family("llava_onevision", tmp_path))
    frames = make_frames(4)
    session.push(frames[0])

    def fails(self, spans, state):
        raise ZeroDivisionError("once")

    with monkeypatch.context() as broken:
        broken.setattr(type(session.memory), "plan", fails)
        with pytest.raises(ZeroDivisionError):
            session.push(frames[1])
    assert session.states["running_mean"].count == 1
    session.push(frames[2])
    assert session.states["running_mean"].count == 2


def test_methods_need_it_by_name(tmp_path):
    with pytest.raises(ModelError, match="newness, running_mean"):
        opened(family("llava_onevision", tmp_path, adapted=False), compressor=Newest(keep=2))
    session = opened(family("llava_onevision", tmp_path), compressor=Newest(keep=2))
    assert session.push(make_frames(1)[0]).tokens_kept == 2


@pytest.mark.parametrize("name", ["memory", "running_mean", "two words"])
def test_a_name_is_its_own(name, tmp_path):
    model = family("llava_onevision", tmp_path)
    adapter = RunningMean(model.spec.hidden_dim)
    adapter.name = name  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="name of its own"):
        model.attach(adapter)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_soft_prefix_of_words_is_a_note_of_them(name, memory, tmp_path):
    model, frames = family(name, tmp_path, adapted=False), make_frames(6)
    rows = model.embed_text(model.note_ids("this is Anna"))
    told = []
    for passes in ("plain", "packed"):
        for soft in (True, False):
            session = opened(model, memory, passes)
            span = session.prefix("Anna", rows) if soft else session.note("this is Anna")
            assert span.num_tokens == len(rows) and span.kind == "text"
            for frame in frames:
                session.push(frame)
            answer = session.ask(QUESTION, max_new_tokens=4)
            told.append((answer.text, answer.usage))
            assert session.notes()[0].text == ("Anna" if soft else "this is Anna")
    assert len(set(told)) == 1


def test_a_soft_prefix_is_the_sessions_own(tmp_path):
    model, frames = family("llava_onevision", tmp_path, adapted=False), make_frames(4)
    engine = Engine(model, encoder="full", compressor="uniform:keep=4", memory="full")
    rows = 3 * torch.randn(5, model.spec.hidden_dim, generator=torch.Generator().manual_seed(0))
    with_prefix, without, before = engine.open(), engine.open(), rows.clone()
    with_prefix.prefix("Anna", rows)
    rows.zero_()  # the caller's memory may be used again
    for frame in frames:
        engine.step([(with_prefix, frame), (without, frame)])
    loaded = engine.load(with_prefix.export())
    again = engine.open()
    again.prefix("Anna", before)
    for frame in frames:
        again.push(frame)
    answers = [one.ask(QUESTION, max_new_tokens=4) for one in (with_prefix, loaded, again)]
    assert len({one.text for one in answers}) == 1
    assert without.ask(QUESTION, max_new_tokens=4).usage.context_tokens == answers[0].usage.context_tokens - 5


@pytest.mark.parametrize("rows", [torch.zeros(0, 32), torch.zeros(3, 7), torch.zeros(32), torch.zeros(3, 32).long()])
def test_rows_of_another_width_are_refused(rows, tmp_path):
    session = opened(family("llava_onevision", tmp_path, adapted=False))
    with pytest.raises(InputError, match="soft prefix"):
        session.prefix("Anna", rows)
