"""A session as its user meets it: order of frames, errors, events, streaming, cancel, fork, close."""

import dataclasses
import gc

import numpy as np
import pytest
from moving_pictures import make_frames

from onlooker.core.errors import CapacityError, InputError, ModelError, SessionClosed
from onlooker.core.events import Closed, Failed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.memory.full import Full

QUESTION = "what is happening in the video ?"


def test_frames_must_come_in_order(plain, frames):
    session = plain.open()
    session.push(frames[1])
    with pytest.raises(InputError, match="order of their times"):
        session.push(frames[0])
    with pytest.raises(InputError, match="order of their times"):
        session.push(frames[1])
    session.push(frames[2])
    assert session.stats().frames == 2


def test_a_question_needs_words_and_a_frame(plain, frames):
    session = plain.open()
    with pytest.raises(InputError, match="nothing to ask about yet"):
        session.ask(QUESTION)
    session.push(frames[0])
    with pytest.raises(InputError, match="needs words"):
        session.ask("  ")
    for wrong in ({"at": -1.0}, {"since": 2.0, "at": 1.0}, {"at": float("nan")}):
        with pytest.raises(InputError, match="from since to at"):
            session.ask(QUESTION, **wrong)
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(InputError):
            session.ask(QUESTION, **wrong)


def test_events_tell_the_story_and_close_ends_it(saving, frames):
    session = saving.open(trace=True)
    for frame in frames:
        session.push(frame)
    seen = list(session.events())
    assert [type(event) for event in seen] == [FrameTaken] * len(frames)
    assert [event.refreshed for event in seen[:7]] == [True, False, False] * 2 + [True]
    assert {event.tokens_kept for event in seen} == {2}
    assert seen[1].recomputed_ratio < 0.5
    assert list(session.events()) == []
    session.close()
    session.close()
    assert list(session.events()) == [Closed(time_s=11.0, frames=12)]
    for use in (lambda: session.push(frames[0]), lambda: session.ask(QUESTION), session.fork):
        with pytest.raises(SessionClosed):
            use()


def test_waiting_events_are_bounded_and_drops_are_counted(plain, monkeypatch):
    import onlooker.engine.session as module

    monkeypatch.setattr(module, "EVENTS_KEPT", 4)
    session = plain.open()
    for frame in make_frames(10):
        session.push(frame)
    assert len(list(session.events())) == 4
    assert session.stats().dropped_events == 6


def test_answers_are_events_and_are_counted(plain, frames):
    session = plain.open()
    session.push(frames[0])
    list(session.events())
    answer = session.ask(QUESTION, max_new_tokens=3)
    assert list(session.events()) == [answer]
    assert session.stats().answers == 1


def test_a_streamed_answer_is_the_asked_answer(plain, frames):
    session = plain.open()
    session.push(frames[0])
    whole = session.ask(QUESTION, max_new_tokens=12)
    stream = session.stream(QUESTION, max_new_tokens=12)
    assert "".join(stream).strip() == whole.text
    assert stream.answer.text == whole.text
    assert stream.answer.usage.new_tokens == whole.usage.new_tokens


def test_cancel_keeps_what_was_said(plain, frames):
    session = plain.open()
    session.push(frames[0])
    stream = session.stream(QUESTION, max_new_tokens=50)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == 2:
            stream.cancel()
    assert stream.answer.finish == "cancelled"
    assert stream.answer.text == "".join(pieces).strip()


def test_sampling_repeats_with_a_seed_and_varies_without(plain, frames):
    session = plain.open()
    session.push(frames[0])
    options = {"temperature": 2.0, "max_new_tokens": 8}
    assert session.ask(QUESTION, seed=3, **options).text == session.ask(QUESTION, seed=3, **options).text
    assert len({session.ask(QUESTION, seed=n, **options).text for n in range(6)}) > 1
    assert (
        session.ask(QUESTION, seed=5, temperature=2.0, top_p=1e-6, max_new_tokens=8).text
        == session.ask(QUESTION, max_new_tokens=8).text
    )


def test_a_full_memory_says_so_and_the_stream_stays_as_it_was(tiny_model, frames):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full", device_budget_bytes=60_000)
    session, calm = engine.open(), engine.open()
    taken = 0
    with pytest.raises(CapacityError):
        for frame in make_frames(400):
            session.push(frame)
            taken += 1
    assert taken > 3
    assert session.stats().frames == taken
    assert isinstance(list(session.events())[-1], Failed)
    assert session.ask(QUESTION, max_new_tokens=4).text is not None
    assert isinstance(engine.step([(calm, frames[0])])[0], FrameTaken)


def test_one_full_session_does_not_stop_the_others(tiny_model, frames):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full", device_budget_bytes=60_000)
    full, other = engine.open(), engine.open()
    for frame in make_frames(400):
        try:
            full.push(frame)
        except CapacityError:
            break
    events = engine.step([(full, Frame(frames[0].image, 1000.0)), (other, frames[0])])
    assert [type(event) for event in events] == [Failed, FrameTaken]


def test_one_session_that_cannot_park_does_not_stop_the_others(tiny_model):
    """The host budget is that of each store: whose parked blocks fill it first fails, and nobody else."""
    memory = {"memory": "rekv:window_tokens=12,topk=2", "host_budget_bytes": 30_000}
    engine = Engine(tiny_model, encoder="full", compressor="identity", **memory)
    full, other = engine.open(), engine.open()
    frames = make_frames(60)
    taken = 0
    with pytest.raises(CapacityError, match="host memory"):
        for frame in frames:
            full.push(frame)
            taken += 1
    assert taken > 3
    held, spans, state = full.stats(), list(full.store.spans), full.states["memory"].export()
    answer = full.ask(QUESTION, max_new_tokens=4).text
    for number in range(3):
        late = Frame(frames[0].image, 1000.0 + number)
        events = engine.step([(full, late), (other, frames[number])])
        assert [type(event) for event in events] == [Failed, FrameTaken]
        assert isinstance(events[0].error, CapacityError) and list(full.events())[-1] == events[0]
    assert full.stats().tokens_read == held.tokens_read and full.stats().frames == taken
    assert list(full.store.spans) == spans and full.states["memory"].export() == state, "the stream is as it was"
    assert full.ask(QUESTION, max_new_tokens=4).text == answer
    alone = Engine(tiny_model, encoder="full", compressor="identity", **memory).open()
    for frame in frames[:3]:
        alone.push(frame)
    assert other.ask(QUESTION, max_new_tokens=4).text == alone.ask(QUESTION, max_new_tokens=4).text


def test_a_policy_that_breaks_costs_its_own_stream_only(tiny_model, frames):
    @dataclasses.dataclass(frozen=True)
    class Faulty(Full):
        def plan(self, spans, state):
            if len(spans) > 3:
                raise ZeroDivisionError("a fault of the policy")
            return super().plan(spans, state)

    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=Faulty())
    older, newer = engine.open(), engine.open()
    for frame in frames[:2]:
        older.push(frame)
    events = engine.step([(older, frames[2]), (newer, frames[0])])
    assert [type(event) for event in events] == [Failed, FrameTaken]
    assert isinstance(events[0].error, ZeroDivisionError) and older.frames == 2


def test_a_fork_goes_its_own_way(saving, frames):
    session = saving.open()
    for frame in frames[:6]:
        session.push(frame)
    twin = session.fork()
    before = session.ask(QUESTION).text
    for frame in make_frames(6, seed=8):
        twin.push(Frame(frame.image, frame.time_s + 6))
    assert session.ask(QUESTION).text == before
    for frame in make_frames(6, seed=8):
        session.push(Frame(frame.image, frame.time_s + 6))
    assert session.ask(QUESTION).text == twin.ask(QUESTION).text


def test_pictures_of_any_size_and_shape_share_a_step(plain):
    rng = np.random.default_rng(0)
    sessions = [plain.open() for _ in range(3)]
    for time_s in (0.0, 1.0):
        arrivals = [
            (session, Frame(rng.integers(0, 256, shape, dtype=np.uint8), time_s))
            for session, shape in zip(sessions, [(56, 56, 3), (31, 97, 3), (1, 1, 3)], strict=True)
        ]
        assert all(isinstance(event, FrameTaken) for event in plain.step(arrivals))


def test_the_same_session_twice_in_a_step_is_refused(plain, frames):
    session = plain.open()
    with pytest.raises(InputError, match="one frame per session"):
        plain.step([(session, frames[0]), (session, frames[1])])


def test_a_closed_session_gives_its_memory_back(plain, frames):
    session = plain.open()
    for frame in frames:
        session.push(frame)
    held = sum(session.stats().memory_bytes.values())
    session.close()
    gc.collect()
    assert sum(session.stats().memory_bytes.values()) < held / 2
    assert session not in plain.sessions


def test_citations_lie_in_the_stream_and_share_sums_to_one_at_most(plain, frames):
    session = plain.open()
    for frame in frames:
        session.push(frame)
    answer = session.ask(QUESTION, max_new_tokens=4)
    assert answer.citations
    assert sum(citation.share for citation in answer.citations) <= 1 + 1e-6
    assert all(0 <= c.start_s <= c.end_s <= 11 and c.recalled == 1.0 for c in answer.citations)
    assert answer.usage.prompt_tokens > 0


def test_retrieval_cites_only_what_was_recalled(saving, frames):
    session = saving.open()
    for frame in frames:
        session.push(frame)
    answer = session.ask(QUESTION, max_new_tokens=4)
    assert answer.citations
    assert all(0 < citation.recalled <= 1 for citation in answer.citations)
    assert session.stats().blocks_parked > 0


def test_a_model_without_what_a_method_needs_is_refused(tiny_model):
    from dataclasses import dataclass
    from typing import ClassVar

    from onlooker.compress.identity import Identity

    @dataclass(frozen=True)
    class Wishful(Identity):
        needs: ClassVar[frozenset[str]] = frozenset({"telepathy"})

    with pytest.raises(ModelError, match="Wishful needs telepathy"):
        Engine(tiny_model, compressor=Wishful())


def test_stats_count_every_token_and_stage(saving, frames):
    session = saving.open()
    for frame in frames:
        session.push(frame)
    stats = session.stats()
    assert (stats.frames, stats.tokens_seen, stats.tokens_kept) == (12, 48, 24)
    assert set(stats.stage_s) == {"preprocess", "encode", "project", "compress", "prefill", "memory"}
    assert all(size >= 0 for size in stats.memory_bytes.values())
    assert stats.memory_bytes["encoder_state"] > 0
