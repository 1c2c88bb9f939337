"""Frames that keep nothing, come late, or several at once: what is remembered is what was shown, in its order."""

import dataclasses
import json
from unittest import mock

import numpy as np
import pytest
import torch
from late_compressors import HoldsSome, KeepsSome, OneLate
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.contracts import ResponsePolicy
from onlooker.core.contracts.respond import SILENT, SPEAK
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine import Decoding, Engine
from onlooker.engine.saving import Saved
from onlooker.kvstore import KVStore
from onlooker.models import load
from onlooker.respond import Rule

QUESTION = "which shape left first ?"
MODELS = [(family, pairs) for family in FAMILIES for pairs in (False, True) if not pairs or "qwen" in family]
LATE = [HoldsSome(), OneLate()]
PASSES = ["plain", "packed"]


@pytest.fixture(scope="module", params=MODELS, ids=lambda p: p[0] + "-pairs" * p[1])
def model(request, tmp_path_factory):
    family, pairs = request.param
    return load(make_family_folder(family, tmp_path_factory.mktemp(family)), device="cpu", pairs=pairs)


def make(model, compressor, passes="plain", memory="full", **budgets):
    return Engine(model, encoder="full", compressor=compressor, memory=memory, passes=passes, **budgets)


def clip(count, seed=1):
    rng = np.random.default_rng(seed)
    return [Frame(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), float(number)) for number in range(count)]


def watch(engine, frames):
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return session


@torch.no_grad()
def scores_after(engine, session, **when):
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=1), **when)
    seen = []
    while not request.done:
        (scores,) = engine.passes.run([request.pending()])
        seen.append(scores)
        request.accept(scores)
    return next(s for s in seen if s is not None)


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def spans(session):
    return [(span.id, span.kind, span.num_tokens, span.start_s, span.end_s) for span in session.store.spans]


def in_patches(model, frames):
    """Frames as they go through the tower together."""
    count = model.patch_frames
    return [frames[first : first + count] for first in range(0, len(frames), count)]


# ------------------------------------------------------------------------------------------- frames that keep nothing


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("memory", ["full", "rekv:topk=1,recent=1,window_tokens=20", "last_frames:frames=2"])
def test_a_frame_that_keeps_nothing_is_as_if_it_had_not_come(model, passes, memory):
    """No block, no time mark, no position: the others are read where and when they would be without it."""
    frames = clip(8 * model.patch_frames)
    kept = [frame for patch in in_patches(model, frames)[::3] for frame in patch]
    some, whole = make(model, KeepsSome(), passes, memory), make(model, "identity", passes, memory)
    session, other = watch(some, frames), watch(whole, kept)
    assert spans(session) == spans(other)
    close(scores_after(some, session), scores_after(whole, other))
    said, wanted = session.ask(QUESTION, max_new_tokens=3), other.ask(QUESTION, max_new_tokens=3)
    assert said.text == wanted.text and said.usage == wanted.usage
    assert [(c.start_s, c.end_s) for c in said.citations] == [(c.start_s, c.end_s) for c in wanted.citations]
    stats = session.stats()
    assert stats.frames_empty == len(frames) - len(kept) and stats.tokens_kept * 8 == stats.tokens_seen * 3


def test_a_stream_that_keeps_nothing_at_all_says_so(model):
    session = watch(make(model, KeepsSome(0)), clip(2 * model.patch_frames))
    with pytest.raises(InputError, match="nothing is remembered"):
        session.ask(QUESTION)
    session.note("a red square")
    assert session.ask(QUESTION, max_new_tokens=2).citations[0].kind == "text"


# ------------------------------------------------------------------------------------------------- frames that are late


@pytest.mark.parametrize("late", LATE, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("memory", ["full", "last_frames:frames=20"])
def test_a_question_reads_what_is_held(model, late, passes, memory):
    """At every frame it is as if nothing was held: same scores, same citations."""
    held, at_once = make(model, late, passes, memory), make(model, "identity", passes, memory)
    session, other = held.open(), at_once.open()
    for frame in clip(4 * model.patch_frames + 1):
        session.push(frame)
        other.push(frame)
        close(scores_after(held, session), scores_after(at_once, other))
    said, wanted = session.ask(QUESTION, max_new_tokens=2), other.ask(QUESTION, max_new_tokens=2)
    assert said.text == wanted.text and said.usage == wanted.usage
    for one, two in zip(said.citations, wanted.citations, strict=True):
        assert (one.start_s, one.end_s) == (two.start_s, two.end_s) and one.share == pytest.approx(two.share, abs=1e-4)


@pytest.mark.parametrize("late", LATE, ids=lambda m: type(m).__name__)
def test_every_frame_is_a_block_of_its_own_and_its_lag_is_counted(model, late):
    held, at_once = make(model, late), make(model, "identity")
    frames = clip(6 * model.patch_frames)
    session, other = held.open(), watch(at_once, frames)
    events = [session.push(frame) for frame in frames]
    count = len(other.store.spans) - (1 if isinstance(late, OneLate) else 0)
    assert spans(session) == spans(other)[:count]
    one = other.stats().tokens_seen // 6
    patches = list(events[model.patch_frames - 1 :: model.patch_frames])
    seen = [0, one, one, one, one, one] if isinstance(late, OneLate) else [0, 0, 3 * one, 0, 0, 3 * one]
    assert [event.tokens_seen for event in patches] == [event.tokens_kept for event in patches] == seen
    is_held = [True] * 6 if isinstance(late, OneLate) else [True, True, False] * 2
    assert [event.held for event in patches] == is_held
    step = float(model.patch_frames)
    waited = 5 * step if isinstance(late, OneLate) else 2 * (2 + 1) * step
    in_pairs = other.stats().held_s
    assert session.stats().held_s == in_pairs + waited * model.patch_frames
    assert session.stats().memory_bytes["compressor_state"] > 0 or not session.pending


@pytest.mark.parametrize("passes", PASSES)
def test_streams_in_different_phases_share_steps(model, passes):
    engine, at_once = make(model, HoldsSome(), passes), make(model, "identity", passes)
    early, late = clip(9 * model.patch_frames, seed=2), clip(8 * model.patch_frames, seed=3)
    first, second = engine.open(), engine.open()
    for number, frame in enumerate(early):
        arrivals = [(first, frame)]
        if number >= 2:
            arrivals.append((second, late[number - 2]))
        engine.step(arrivals)
    for session, frames in ((first, early), (second, late[: len(early) - 2])):
        close(scores_after(engine, session), scores_after(at_once, watch(at_once, frames)))


@pytest.mark.parametrize("late", LATE, ids=lambda m: type(m).__name__)
def test_forked_and_saved_it_goes_on_the_same(model, late):
    engine, frames = make(model, late, memory="rekv:topk=1,recent=1,window_tokens=20"), clip(8 * model.patch_frames)
    cut = 4 * model.patch_frames + 1
    session = watch(engine, frames[:cut])
    saved = session.export()
    twin, again = session.fork(), engine.load(Saved(saved.tensors, json.loads(json.dumps(saved.facts))))
    torch.testing.assert_close(scores_after(engine, again), scores_after(engine, session), rtol=0, atol=0)
    for frame in frames[cut:]:
        session.push(frame)
    before = scores_after(engine, twin)
    torch.testing.assert_close(before, scores_after(engine, watch(engine, frames[:cut])), rtol=0, atol=0)
    for frame in frames[cut:]:
        twin.push(frame)
        again.push(frame)
    for other in (twin, again):
        torch.testing.assert_close(scores_after(engine, other), scores_after(engine, session), rtol=0, atol=0)
        assert other.stats().held_s == session.stats().held_s
    saved.facts["pending"].append({"number": 0})
    with pytest.raises(InputError, match="damaged"):
        engine.load(saved.sealed())


@pytest.mark.parametrize("passes", PASSES)
def test_a_note_comes_behind_what_was_seen(model, passes):
    """What is held is given out first, whole."""
    held, at_once = make(model, HoldsSome(), passes), make(model, "identity", passes)
    frames, sessions = clip(7 * model.patch_frames), [held.open(), at_once.open()]
    for number, frame in enumerate(frames):
        for session in sessions:
            session.push(frame)
            if number == 4 * model.patch_frames - 1:
                session.note("a red square")
    assert spans(sessions[0])[:6] == spans(sessions[1])[:6]
    close(scores_after(held, sessions[0]), scores_after(at_once, sessions[1]))


@pytest.mark.parametrize("passes", PASSES)
def test_several_frames_are_remembered_together_or_none(model, passes):
    """With no room for the last of three, none is there and the frame is refused; with room it goes on."""
    engine, frames = make(model, HoldsSome(), passes), clip(9 * model.patch_frames)
    session, start = engine.open(), 5 * model.patch_frames
    for frame in frames[:start]:
        session.push(frame)
    last = model.patch_frames - 1
    for frame in frames[start : start + last]:
        session.push(frame)
    before, held = spans(session), scores_after(engine, session)
    store, first = session.store, [True]

    def begin(*args, **more):
        if first and first.pop():
            return KVStore.begin(store, *args, **more)
        raise CapacityError("no room for the second")

    little = mock.patch.object(store, "begin", side_effect=begin)
    spied = mock.patch.object(store, "take_back", wraps=store.take_back)
    with little, spied as taken_back, pytest.raises(CapacityError):
        session.push(frames[start + last])
    assert taken_back.call_count == 1, "the first was stored"
    assert spans(session) == before and len(session.pending) == 2
    torch.testing.assert_close(scores_after(engine, session), held, rtol=0, atol=0)
    for frame in frames[start + last :]:
        session.push(frame)
    close(scores_after(engine, session), scores_after(engine, watch(engine, frames)))


def test_a_cancelled_question_leaves_what_is_held(model):
    engine = make(model, HoldsSome())
    session = watch(engine, clip(4 * model.patch_frames))
    before = scores_after(engine, session)
    answer = session.stream(QUESTION, max_new_tokens=5)
    answer.cancel()
    assert answer.answer.finish == "cancelled"
    torch.testing.assert_close(scores_after(engine, session), before, rtol=0, atol=0)


def test_a_change_of_size_gives_out_what_was_held(model):
    rng = np.random.default_rng(4)
    sides = [56] * 2 * model.patch_frames + [84] * 2 * model.patch_frames
    frames = [Frame(rng.integers(0, 256, (n, n, 3), dtype=np.uint8), float(k)) for k, n in enumerate(sides)]
    held, at_once = make(model, HoldsSome()), make(model, "identity")
    close(scores_after(held, watch(held, frames)), scores_after(at_once, watch(at_once, frames)))


@dataclasses.dataclass(frozen=True)
class Sees(ResponsePolicy):
    """Speaks whenever it is shown a frame."""

    def new_state(self):
        return StreamState()

    def decide(self, moment, state):
        return SPEAK if moment.kept_ratio == 1.0 else SILENT


@pytest.mark.parametrize(("late", "looks"), [(HoldsSome(), [2, 5]), (OneLate(), [1, 2, 3, 4, 5])])
def test_rules_that_look_at_what_was_kept_look_when_it_is_known(model, late, looks):
    session = make(model, late).open()
    rules = session.watch([Rule("sees", "Did it change?", Sees())])
    alerts = [alert for frame in clip(6 * model.patch_frames) for alert in rules.look(frame, session.push(frame))]
    assert [alert.time_s for alert in alerts] == [(n + 1) * model.patch_frames - 1.0 for n in looks]


def test_a_method_that_breaks_its_word_is_told(model):
    class HoldsTooLong(HoldsSome):
        lookahead = 1

    class SaysNothingOfIt(HoldsSome):
        def num_held(self, state):
            return 0

    for broken, what in ((HoldsTooLong(), "holds more frames"), (SaysNothingOfIt(), "does not hold")):
        session = make(model, broken).open()
        with pytest.raises(InputError, match=what):
            for frame in clip(3 * model.patch_frames):
                session.push(frame)
