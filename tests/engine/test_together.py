"""Frames of a file in one prefill: what is remembered and said is that of frames that were pushed one by one."""

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from late_compressors import HoldsSome, KeepsSome
from moving_pictures import make_frames
from tiny import make_qwen_folder

from onlooker.core import registry
from onlooker.core.contracts import Gate
from onlooker.core.errors import InputError, ModelError, SessionClosed
from onlooker.core.events import Answer
from onlooker.core.spans import Plan
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.engine.chaptering import Chapters
from onlooker.engine.together import may_group
from onlooker.memory.full import Full
from onlooker.models import load
from onlooker.respond import Surprise

QUESTION = "which shape left first ?"
UNTIMED = {"stage_s", "frames_together"}


def assert_alike(one, other, *, together=True):
    """Two sessions remember the same, but for rounding, and have counted the same."""
    ours, theirs = one.export(), other.export()
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(tensor, theirs.tensors[name], rtol=1e-3, atol=1e-4, msg=name)
    assert one.store.spans == other.store.spans
    counts = [dataclasses.asdict(session.stats()) for session in (one, other)]
    assert (counts[0]["frames_together"] > 0) == together and not counts[1]["frames_together"]
    for count in counts:
        for name in UNTIMED | {"memory_bytes"}:
            del count[name]
    assert counts[0] == counts[1]
    if len(one.store.spans) == 1:  # nothing is remembered
        return
    assert one.ask(QUESTION, max_new_tokens=2).text == other.ask(QUESTION, max_new_tokens=2).text


def both(engine, frames, together=5):
    """A session that was pushed into one by one, and one in groups; what each told of its frames."""
    apart, grouped = engine.open(), engine.open()
    told = [apart.push(frame) for frame in frames]
    found = list(grouped.push_many(iter(frames), together=together))
    assert [frame for frame, _ in found] == frames and [taken for _, taken in found] == told
    return grouped, apart


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize(
    "memory",
    ["full", "quickprefill:group=4", "rekv:topk=3,recent=2,window_tokens=40", "sliding_window:window_frames=6"],
)
@pytest.mark.parametrize("encoder", ["full", "stc_published:interval=3,recompute_ratio=0.25"])
def test_groups_are_remembered_as_one_by_one(tiny_model, encoder, memory, passes):
    engine = Engine(tiny_model, encoder=encoder, compressor="stc_pruner:keep=2", memory=memory, passes=passes)
    before = engine.passes.counts.passes
    assert_alike(*both(engine, make_frames(23)))
    assert engine.passes.counts.passes - before < 60, "groups take fewer passes"


@pytest.mark.parametrize("name", registry.names("memory"))
def test_every_memory_remembers_groups_as_one_by_one(tiny_model, name):
    try:
        engine = Engine(tiny_model, encoder="full", compressor="stc_pruner:keep=2", memory=name)
    except ModelError as lacking:
        pytest.skip(str(lacking))
    grouped, apart = both(engine, make_frames(18), together=7)
    assert_alike(grouped, apart, together=may_group(apart, engine))


@pytest.mark.parametrize("compressor", [HoldsSome(), KeepsSome(), KeepsSome(every=0)], ids=["late", "some", "none"])
def test_frames_that_come_out_late_or_empty(tiny_model, compressor):
    engine = Engine(tiny_model, encoder="full", compressor=compressor, memory="full")
    assert_alike(*both(engine, make_frames(17), together=8), together=compressor != KeepsSome(every=0))


def test_frames_that_the_gate_skips(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full", gate="every_nth:n=3")
    grouped, apart = both(engine, make_frames(20), together=8)
    assert apart.stats().frames_skipped
    assert_alike(grouped, apart)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_frames_in_pairs(tmp_path, family):
    model = load(make_qwen_folder(tmp_path, family), device="cpu", pairs=True)
    engine = Engine(model, encoder="full", compressor="identity", memory="full")
    assert_alike(*both(engine, make_frames(15), together=8))


def test_at_every_frame_it_is_asked_and_forked_as_if_none_had_come_behind(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="quickprefill:group=3")
    frames, apart, grouped = make_frames(10), engine.open(), engine.open()
    for frame, (_, taken) in zip(frames, grouped.push_many(frames, together=8), strict=True):
        assert apart.push(frame) == taken
        says = [one.ask(QUESTION, max_new_tokens=3) for one in (grouped, apart, grouped.fork())]
        assert len({answer.text for answer in says}) == 1 and len({one.citations for one in says[:1]}) == 1
        assert grouped.store.spans == apart.store.spans and grouped.time_s == frame.time_s
    assert_alike(grouped, apart)


def test_what_is_written_between_two_frames_is_read_behind_the_first(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    frames, apart, grouped = make_frames(12), engine.open(), engine.open()
    for frame, _ in grouped.push_many(frames, together=6):
        apart.push(frame)
        if frame.time_s in (2.0, 5.0, 11.0):
            assert grouped.note("the bird came").id == apart.note("the bird came").id
    assert_alike(grouped, apart)


def test_chapters_hear_every_frame_of_a_group(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    frames, found, heard = make_frames(24), [], []
    for together in (1, 6):
        session, cues, surprises = engine.open(), [], []
        cutting = Chapters(engine, session, QUESTION, Surprise(threshold=2.0, quiet_s=1.0), least_s=2.0, longest=3)
        for frame, taken in session.push_many(frames, together=together):
            surprises.append(None if session.heard.surprise is None else float(session.heard.surprise))
            cues += cutting.look(frame, taken)
        found.append([*cues, *cutting.end(24.0)])
        heard.append(surprises)
        assert (session.stats().frames_together > 0) == (together > 1)
    assert heard[1][4:] == pytest.approx(heard[0][4:], rel=1e-3) and heard[0][4:] == [s for s in heard[0] if s]
    assert found[0] == found[1] and len(found[0]) > 1


def test_a_generator_that_is_left_leaves_the_stream_as_after_its_last_frame(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    frames, apart, grouped = make_frames(12), engine.open(), engine.open()
    coming = grouped.push_many(frames[:8], together=8)
    list(itertools.islice(coming, 3))
    coming.close()
    for frame in frames[:3]:
        apart.push(frame)
    for frame in frames[8:]:
        assert grouped.push(frame) == apart.push(frame)
    assert_alike(grouped, apart)


def test_what_the_source_raises_comes_behind_the_frames_before_it(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    session, seen = engine.open(), []

    def broken():
        yield from make_frames(5)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        for frame, _ in session.push_many(broken(), together=4):
            seen.append(frame.time_s)
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0] == [span.start_s for span in session.store.spans[1:]]
    with pytest.raises(InputError):
        list(session.push_many(make_frames(3), together=4))
    with pytest.raises(InputError, match="together"):
        next(session.push_many([], together=0))
    assert list(session.push_many([], together=4)) == []
    later = session.push_many([dataclasses.replace(one, time_s=one.time_s + 9) for one in make_frames(6)], together=4)
    next(later)
    session.close()
    with pytest.raises(SessionClosed):
        next(later)


@dataclass(frozen=True)
class Refusing(Full):
    """A memory that fails of its sixth block, and of no other."""

    def plan(self, spans, state: StreamState):
        if len(spans) == 7:
            raise ValueError("no sixth block")
        return Plan()


def test_a_frame_that_is_refused_ends_it_there(tiny_model):
    engine = Engine(tiny_model, encoder="stc_published:interval=3", compressor="identity", memory=Refusing())
    frames, apart, grouped = make_frames(9), engine.open(), engine.open()
    for session, push in ((apart, lambda: [apart.push(one) for one in frames]),
                          (grouped, lambda: list(grouped.push_many(frames, together=8)))):  # fmt: skip
        with pytest.raises(ValueError, match="sixth"):
            push()
        assert session.frames == 5
    assert_alike(grouped, apart)


@dataclass(frozen=True)
class Fickle(Full):
    """A memory whose plans differ from one asking to the next: it breaks its promise, and nothing else breaks."""

    asked = itertools.count()

    def plan(self, spans, state: StreamState):
        return Plan(forget=(spans[1].id,)) if next(self.asked) % 2 and len(spans) > 4 else Plan()


def test_a_memory_that_plans_otherwise_than_it_said_loses_nothing(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory=Fickle())
    session = engine.open()
    taken = [event.time_s for _, event in session.push_many(make_frames(12), together=4)]
    assert taken == list(range(12)) and session.store.spans[-1].end_s == 11.0
    assert isinstance(session.ask(QUESTION, max_new_tokens=2), Answer)


@dataclass(frozen=True)
class Heeding(Gate):
    """Skips a frame when the memory has an even number of blocks."""

    heeds_memory = True

    def new_state(self):
        return StreamState()

    def look(self, frame, memory, state):
        return float(memory.seen_s is None or len(memory.spans) % 2 or frame.time_s % 3 == 0)


@pytest.mark.parametrize(
    "settings",
    [{"gate": Heeding()}, {"device_budget_bytes": 2**24}, {"kv": "device=int4"}, {"memory": "last_frames"}],
    ids=["gate", "budget", "codes", "tokens"],
)
def test_where_it_may_differ_frames_are_read_one_by_one(tiny_model, settings):
    engine = Engine(tiny_model, **({"encoder": "full", "compressor": "identity", "memory": "full"} | settings))
    grouped, apart = both(engine, make_frames(9))
    assert not may_group(apart, engine)
    assert_alike(grouped, apart, together=False)
