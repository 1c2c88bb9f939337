"""Frames that meet the gate: skipped, shrunk, replaced, in pairs, saved, and one stream's fault alone."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.contracts import PICTURE_SIZES, Gate, MemoryView
from onlooker.core.errors import InputError, ModelError
from onlooker.core.events import Failed
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.gate import All, EveryNth, StillSkip
from onlooker.models import load

PLAIN = {"encoder": "full", "compressor": "identity", "memory": "full"}
QUESTION = "what is there ?"


@dataclass
class Verdicts(StreamState):
    looked: int = 0
    spans: int = 0


@dataclass(frozen=True)
class Scripted(Gate):
    """Does with every frame what it is told to."""

    verdicts: tuple[float | str, ...] = (1.0,)

    def new_state(self) -> Verdicts:
        return Verdicts()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float | np.ndarray:
        assert isinstance(state, Verdicts)
        verdict = self.verdicts[state.looked % len(self.verdicts)]
        state.looked, state.spans = state.looked + 1, len(memory.spans)
        if verdict == "fails":
            raise RuntimeError("a faulty gate")
        return np.full((56, 56, 3), 99, np.uint8) if verdict == "tile" else verdict  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


@pytest.fixture(scope="module")
def sizes_model(tmp_path_factory):
    """One that reads pairs and takes pictures of any size."""
    family = next(name for name in FAMILIES if "qwen3" in name.lower())
    return load(make_family_folder(family, tmp_path_factory.mktemp("sizes")), device="cpu")


def frames(count: int, size: int = 56, seed: int = 0) -> list[Frame]:
    return [Frame(one.image, float(n)) for n, one in enumerate(make_frames(count, seed=seed, size=size))]


def still(count: int, start_s: float = 0.0) -> list[Frame]:
    image = make_frames(1, seed=3, size=56)[0].image
    return [Frame(image.copy(), start_s + n) for n in range(count)]


def watched(engine: Engine, given: list[Frame]):
    session = engine.open()
    return session, [session.push(frame) for frame in given]


def held_by(session) -> list[tuple]:
    tensors, facts = session.store.export()
    return [facts, *sorted((name, tensor.tolist()) for name, tensor in tensors.items())]


def test_the_default_changes_nothing_to_the_bit(model):
    clip = frames(5)
    plain, _ = watched(Engine(model, **PLAIN), clip)
    gated, _ = watched(Engine(model, **PLAIN, gate=Scripted()), clip)
    assert isinstance(Engine(model, **PLAIN).serving.gate, All)
    assert held_by(plain) == held_by(gated)
    assert plain.ask(QUESTION, max_new_tokens=4).text == gated.ask(QUESTION, max_new_tokens=4).text


def test_a_skipped_frame_costs_nothing_and_is_counted(model):
    engine = Engine(model, **PLAIN, gate="still_skip")
    looked: list[int] = []
    look = engine.eye.look
    engine.eye.look = lambda patches, **more: looked.append(len(patches)) or look(patches, **more)
    still_session, events = watched(engine, still(6))
    assert [event.skipped for event in events] == [False] + [True] * 5
    assert sum(looked) == (1 if model.patch_frames == 1 else 0)
    assert all(event.tokens_seen == 0 for event in events[1:]) and [event.number for event in events] == [*range(6)]
    stats = still_session.stats()
    assert (stats.frames, stats.frames_skipped) == (6, 5) and still_session.time_s == 5.0
    assert still_session.stats().memory_bytes["gate_state"] > 0
    answer = still_session.ask(QUESTION, max_new_tokens=4)
    one, _ = watched(Engine(model, **PLAIN), still(1))
    assert one.ask(QUESTION, max_new_tokens=4).text == answer.text and answer.time_s == 5.0


def test_what_is_seen_is_as_if_the_skipped_frames_had_never_come(model):
    clip = frames(9)
    gated, _ = watched(Engine(model, **PLAIN, gate=EveryNth(3)), clip)
    fewer, _ = watched(Engine(model, **PLAIN), clip[::3])
    assert held_by(gated) == held_by(fewer) and gated.next_number == fewer.next_number
    assert gated.ask(QUESTION, max_new_tokens=4).text == fewer.ask(QUESTION, max_new_tokens=4).text


def test_streams_in_one_step_meet_their_own_gates(model):
    engine = Engine(model, **PLAIN, gate="still_skip")
    clips = [still(5), frames(5), frames(5, seed=7)]
    together = [engine.open() for _ in clips]
    for step in zip(*clips, strict=True):
        engine.step(list(zip(together, step, strict=True)))
    for session, clip in zip(together, clips, strict=True):
        alone, _ = watched(engine, clip)
        assert session.stats().frames_skipped == alone.stats().frames_skipped
        assert session.ask(QUESTION, max_new_tokens=4).text == alone.ask(QUESTION, max_new_tokens=4).text
    assert together[0].stats().frames_skipped == 4 and together[1].stats().frames_skipped == 0


def test_a_frame_does_not_wait_for_its_pair_for_ever(sizes_model):
    assert sizes_model.patch_frames == 2
    engine = Engine(sizes_model, **PLAIN, gate=StillSkip(longest_s=None))
    session, events = watched(engine, still(14))
    late = int(sizes_model.patch_s) + 1
    assert [event.number for event in events if event.tokens_seen] == [late] and events[late].skipped
    assert not session.waiting and session.stats().held_s == late
    moved = make_frames(1, seed=8, size=56)[0].image
    assert session.push(Frame(moved, 14.0)).held


def test_a_pair_is_made_with_the_next_frame_that_is_seen(sizes_model):
    clip = frames(4)
    gated, _ = watched(Engine(sizes_model, **PLAIN, gate=Scripted((1.0, 0.0, 0.0, 1.0))), clip)
    pair, _ = watched(Engine(sizes_model, **PLAIN), [clip[0], clip[3]])
    assert held_by(gated) == held_by(pair)


def test_a_shrunk_frame_has_fewer_tokens_or_is_refused_by_name(model):
    clip = frames(4, size=112)
    whole = watched(Engine(model, **PLAIN), clip)[0].stats().tokens_seen
    engine = Engine(model, **PLAIN, gate=Scripted((0.5,)))
    shrunk = watched(engine, clip)[0].stats()
    assert 0 < shrunk.tokens_seen <= whole // 2 and shrunk.frames_shrunk == 4
    fixed = copy.copy(model)
    fixed.offers = model.offers - {PICTURE_SIZES}
    engine = Engine(fixed, **PLAIN, gate=Scripted((0.5,)))
    with pytest.raises(InputError, match="Scripted shrinks frames, and this model takes all pictures at one size"):
        watched(engine, clip)

    @dataclass(frozen=True)
    class Shrinks(Scripted):
        needs: ClassVar[frozenset[str]] = frozenset({PICTURE_SIZES})

    with pytest.raises(ModelError, match="Shrinks needs picture_sizes"):
        Engine(fixed, **PLAIN, gate=Shrinks())


@pytest.mark.parametrize("memory", ["full", "last_frames:frames=6"])
@pytest.mark.parametrize("encoder", ["full", "stc_cacher"])
def test_sizes_may_change_in_flight_whatever_the_passes_and_come_back_when_saved(model, encoder, memory):
    clip, told = frames(9, size=112), []
    for passes in ("plain", "packed"):
        gate = Scripted((1.0, 1.0, 0.5, 0.5, 0.5))
        engine = Engine(model, encoder=encoder, compressor="identity", memory=memory, gate=gate, passes=passes)
        together = [engine.open(), engine.open()]
        for frame in clip[:4]:
            engine.step([(session, frame) for session in together])
        saved = engine.load(together[1].export())
        for frame in clip[4:]:
            engine.step([(session, frame) for session in (*together, saved)])
        told.append([session.ask(QUESTION, max_new_tokens=4).text for session in (*together, saved)])
    assert len({text for texts in told for text in texts}) == 1


def test_the_gate_is_told_what_the_memory_made_of_the_last_frame(model):
    """CurveStream's verdict comes before the tower: like frames of a stream that stands still are encoded small."""
    given = [*frames(4, size=112), *still(20, 4.0), *[Frame(one.image, 24.0 + one.time_s) for one in frames(2, 112, 5)]]
    sessions = {}
    for gate in ("all", "hinted"):
        session = Engine(
            model, encoder="full", compressor="identity", memory="curvestream", gate=gate, passes="packed"
        ).open()
        for frame in given:
            session.push(frame)
        assert session.memory.hint(session.states["memory"]) in ("clear", "fuzzy", "dropped")
        sessions[gate] = session
    stats = {gate: session.stats() for gate, session in sessions.items()}
    assert stats["hinted"].frames_shrunk >= 3 and stats["all"].frames_shrunk == 0
    assert stats["hinted"].tokens_seen < stats["all"].tokens_seen
    assert sessions["hinted"].ask(QUESTION, max_new_tokens=3).text
    with pytest.raises(InputError, match="share of its size"):
        Frame(given[0].image, 0.0, share=0.0)


def test_another_picture_is_encoded_in_the_frames_place(model):
    clip = frames(2)
    gated, _ = watched(Engine(model, **PLAIN, gate=Scripted(("tile",))), clip)
    tile = np.full((56, 56, 3), 99, np.uint8)
    plain, _ = watched(Engine(model, **PLAIN), [Frame(tile, frame.time_s) for frame in clip])
    assert held_by(gated) == held_by(plain)


def test_a_session_goes_on_where_it_was_saved_and_forks_go_their_own_way(model):
    engine = Engine(model, **PLAIN, gate="still_skip")
    clip = still(3)
    session, _ = watched(engine, clip)
    again = engine.load(session.export())
    assert again.seen_s == session.seen_s == 0.0
    fork = session.fork()
    for each in (session, again, fork):
        assert each.push(still(1, 3.0)[0]).skipped
    assert not session.push(Frame(make_frames(1, seed=9, size=56)[0].image, 4.0)).skipped
    assert fork.push(still(1, 4.0)[0]).skipped


@pytest.mark.parametrize(("verdict", "words"), [("fails", "a faulty gate"), (1.5, "verdict that is none")])
def test_what_a_gate_fails_of_is_its_streams_own_affair(model, verdict, words):
    engine = Engine(model, **PLAIN, gate=Scripted((1.0, verdict, 1.0)))
    one, other = engine.open(), engine.open()
    clip = frames(3)
    one.push(clip[0])
    events = engine.step([(one, clip[1]), (other, clip[0])])
    assert isinstance(events[0], Failed) and words in str(events[0].error) and not isinstance(events[1], Failed)
    assert one.time_s == 0.0 and one.states["gate"].looked == 1, "as it was before the frame"


def test_the_first_frame_may_not_be_skipped(model):
    with pytest.raises(InputError, match="skipped the first frame of a stream"):
        watched(Engine(model, **PLAIN, gate=Scripted((0.0,))), frames(1))


def test_the_gate_sees_the_memory_and_traces_tell_of_skipped_frames(model):
    engine = Engine(model, **PLAIN, gate=EveryNth(2))
    session = engine.open(trace=True)
    for frame in frames(5):
        session.push(frame)
    if model.patch_frames == 1:
        assert session.trace is not None and session.trace.kept.all()
    session.push(Frame(frames(6)[5].image, 5.0))
    if session.trace is not None:
        assert session.trace.time_s == 5.0 and not session.trace.kept.any() and not session.trace.recomputed.any()
    scripted, _ = watched(Engine(model, **PLAIN, gate=Scripted()), frames(5))
    assert scripted.states["gate"].spans == 1 + 4 // model.patch_frames
