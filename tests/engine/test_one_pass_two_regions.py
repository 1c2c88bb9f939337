"""A frame and the next token of a note go through one pass, as two regions of one stream that do not see each other.

What the note says was asked before the frame came, and is the same whatever the frame shows; the frame is to the bit
the same whatever the note says; each counts its own positions. So the pass equals two plain passes, one for each.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder
from torch import Tensor

from onlooker.core.errors import CapacityError
from onlooker.core.events import Failed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.engine.probing import Reply
from onlooker.engine.session import Session
from onlooker.models import load

SAID = (5, 17, 9, 30, 12, 8)
SEEN_BEFORE = 3
MEMORIES = (
    "full",
    "sliding_window:window_tokens=60",
    "streaming_vlm:vision_s=4",
    "rekv:topk=3,recent=2,window_tokens=40",
)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


def engine_of(model, memory: str = "full", passes: str = "packed", **settings) -> Engine:
    return Engine(model, encoder="full", compressor="identity", memory=memory, passes=passes, **settings)


@dataclass
class Life:
    """A stream, and what a note beside it was read at and got."""

    session: Session
    reply: Reply
    scores: list[Tensor] = field(default_factory=list)
    passes: list[list[tuple[int, tuple[int, int]]]] = field(default_factory=list)
    """Of every pass its works: tokens, and first and last position on the first axis."""


@pytest.fixture
def begin(monkeypatch):
    """Begins a life whose note says what it is told to."""

    def begun(engine: Engine, said: tuple[int, ...] = SAID, place: str = "own") -> Life:
        class Forced:
            looks_back = False

            def draw(self, scores, read, already):
                life.scores.append(scores.clone())
                return said[len(already)]

        monkeypatch.setattr("onlooker.engine.request.Sampler", lambda *given: Forced())
        session = engine.open()
        for frame in make_frames(SEEN_BEFORE):
            session.push(frame)
        life = Life(session, Reply(session, "what happens ?", len(said), priority=1, place=place))
        run = type(engine.passes).run

        def spying(works):
            places = [work.segment.places() for work in works]
            if all(place is not None for place in places):
                life.passes.append(
                    [
                        (len(w.embeddings), (int(p[0].min()), int(p[0].max())))
                        for w, p in zip(works, places, strict=True)
                    ]
                )
            return run(engine.passes, works)

        monkeypatch.setattr(engine.passes, "run", spying)
        while not life.scores:  # the prompt, of which a memory that recalls first chooses what it sees
            engine.step_requests([life.reply])
        life.passes.clear()
        return life

    return begun


def frames_after(seed: int = 0) -> list[Frame]:
    return [Frame(frame.image, frame.time_s) for frame in make_frames(SEEN_BEFORE + 5, seed=seed)[SEEN_BEFORE:]]


def go_on(life: Life, frames: list[Frame], together: bool = True) -> list[FrameTaken | Failed]:
    """A token of the note for every frame: in the frame's pass, or in one of its own before it."""
    engine, events = life.session._engine, []
    for frame in frames:
        beside = [life.reply] if together else []
        if not together:
            engine.step_requests([life.reply])
        events += engine.advance([(life.session, frame)], beside)[0]
    return events


def stored(session: Session) -> dict[str, Tensor]:
    return session.store.export()[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_one_pass_equals_two(model, memory, passes, begin):
    """Everywhere the same scores of the note and the same keys of the frames as in plain passes one after the other."""
    engine = engine_of(model, memory, passes)
    one = begin(engine)
    before = engine.passes.counts.passes, engine.passes.counts.plain
    go_on(one, frames_after())
    assert engine.passes.counts.passes - before[0] == 5, "one pass a frame, with a token of the note in it"
    assert engine.passes.counts.plain - before[1] == (5 if passes == "plain" else 0)
    two = begin(engine_of(model, memory, "plain"))
    go_on(two, frames_after(), together=False)
    assert len(one.scores) == len(two.scores) == len(SAID)
    for got, wanted in zip(one.scores, two.scores, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    same(stored(two.session), stored(one.session), 1e-3)
    assert one.reply.finished and one.reply.said == SAID


@pytest.mark.parametrize("memory", MEMORIES)
def test_neither_region_sees_the_other(model, memory, begin):
    one = begin(engine_of(model, memory))
    go_on(one, frames_after())
    elsewhere = begin(engine_of(model, memory))
    go_on(elsewhere, frames_after(seed=9))
    both = zip(stored(one.session).values(), stored(elsewhere.session).values(), strict=True)
    assert not all(torch.equal(*pair) for pair in both), "other pictures"
    for got, wanted in zip(elsewhere.scores, one.scores, strict=True):
        assert torch.equal(got, wanted), "what is said does not depend on the frames of its own passes"
    other = begin(engine_of(model, memory), said=SAID[::-1])
    go_on(other, frames_after())
    assert not torch.equal(other.scores[-1], one.scores[-1]), "other words"
    same(stored(one.session), stored(other.session))


@pytest.mark.parametrize("place", ["own", "behind"])
def test_each_region_counts_its_own_positions(model, place, begin):
    life = begin(engine_of(model), place=place)
    go_on(life, frames_after())
    silent = engine_of(model).open()
    seen = []
    for number, frame in enumerate([*make_frames(SEEN_BEFORE), *frames_after()]):
        silent.push(frame)
        if number >= SEEN_BEFORE:
            seen.append(silent.store._entries[silent.store.spans[-1].id].block.written[0])
    notes = [works[-1] for works in life.passes]
    first = notes[0][1][0]
    assert [(count, at[0]) for count, at in notes] == [(1, first + n) for n in range(5)], "a token a pass, one further"
    assert first == 0 or place == "behind"
    assert [works[0][1][0] for works in life.passes] == seen, "frames go on where they would without a note"


def test_a_note_on_its_way_stays_with_its_session(model, begin):
    """A fork and a saved session hold the stream and not the note; going on, all three see the same."""
    engine = engine_of(model, "sliding_window:window_tokens=60")
    life, frames = begin(engine), frames_after()
    go_on(life, frames[:2])
    fork, loaded = life.session.fork(), engine.load(life.session.export())
    go_on(life, frames[2:])
    for session in (fork, loaded):
        assert session.thinking is None
        for frame in frames[2:]:
            session.push(frame)
        same(stored(life.session), stored(session), 1e-5)
    assert life.reply.said == SAID


def test_a_note_that_is_cancelled_leaves_no_trace(model, begin):
    engine = engine_of(model)
    life, frames = begin(engine), frames_after()
    go_on(life, frames[:2])
    life.reply.cancel()
    assert life.reply.done and not life.reply.finished
    alone = engine_of(model).open()
    for frame in [*make_frames(SEEN_BEFORE), *frames]:
        alone.push(frame)
    for frame in frames[2:]:
        engine.advance([(life.session, frame)], [])
    same(stored(alone), stored(life.session), 1e-5)


def test_a_frame_without_room_does_not_cost_the_note(model, begin):
    """The budget holds the first frames and the note; a frame that does not fit is told, and the note goes on."""
    frames, wanted = frames_after(), begin(engine_of(model))
    go_on(wanted, frames)
    held = wanted.session.store.num_bytes()
    budget = sum(size for name, size in held.items() if name.startswith("device") and name != "device_views")
    life = begin(engine_of(model, device_budget_bytes=int(budget * 0.8)))
    events = go_on(life, frames)
    failed = [event for event in events if isinstance(event, Failed)]
    assert 0 < len(failed) < 5 and all(isinstance(event.error, CapacityError) for event in failed)
    assert life.session.frames == SEEN_BEFORE + 5 - len(failed)
    assert life.reply.finished and life.reply.said == SAID
    for got, plain in zip(life.scores, wanted.scores, strict=True):
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


def test_several_streams_in_one_pass(model, begin):
    """Frames of all, and the note of one: each is as it is alone."""
    engine, frames = engine_of(model), frames_after()
    life, other = begin(engine), engine.open()
    for number, frame in enumerate(frames):
        picture = Frame(np.ascontiguousarray(frame.image[::-1]), float(number))
        engine.advance([(other, picture), (life.session, frame)], [life.reply])
        assert len(life.passes[-1]) == 3
    alone = begin(engine_of(model))
    go_on(alone, frames)
    same(stored(alone.session), stored(life.session), 1e-4)
    for got, wanted in zip(life.scores, alone.scores, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
