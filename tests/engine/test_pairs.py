"""Frames in pairs, as the Qwen families were trained: fed one by one they are what the stock model makes of a video."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from moving_pictures import make_frames
from stock_models import load_stock
from stock_videos import video_inputs
from tiny import make_qwen_folder

from onlooker.core.contracts import SILENT, SPEAK, ResponsePolicy
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.encode import STCCacher
from onlooker.engine import Decoding, Engine
from onlooker.engine.packing import run_pass
from onlooker.models import load
from onlooker.respond import Rule
from onlooker.server import snapshots
from onlooker.server.keys import Caller
from onlooker.server.settings import Limits

QUESTION = "which shape left first ?"
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_qwen_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu", pairs=True)


@pytest.fixture
def plain(model):
    return Engine(model, encoder="full", compressor="identity", memory="full")


@pytest.fixture
def saving(model):
    return Engine(
        model,
        encoder="stc_cacher:interval=3,recompute_ratio=0.25",
        compressor="stc_pruner:keep=2",
        memory="rekv:topk=3,recent=2,window_tokens=40",
    )


def clip(count, fps=1.0, seed=1, size=(56, 84)):
    rng = np.random.default_rng(seed)
    return [Frame(rng.integers(0, 256, (*size, 3), dtype=np.uint8), number / fps) for number in range(count)]


def watch(engine, frames):
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return session


@torch.no_grad()
def scores_after(session, question=QUESTION, engine=None, **when):
    """The scores behind an answer's first token."""
    request = session.submit(question, decoding=Decoding(max_new_tokens=1), **when)
    seen = []
    while not request.done:
        work = request.pending()
        (scores,) = run_pass(session.model, [work]) if engine is None else engine.passes.run([work])
        seen.append(scores)
        request.accept(scores)
    return next(s for s in seen if s is not None)


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize(("count", "fps"), [(8, 1.0), (12, 2.0), (7, 1.0), (1, 1.0), (9, 0.25), (10, 3.0)])
@torch.no_grad()
def test_pairs_fed_frame_by_frame_equal_the_stock_models_own_video(folder, model, passes, count, fps):
    """Also with a frame left over, which stands for the one that is missing, as the processor repeats it."""
    engine = Engine(model, encoder="full", compressor="identity", memory="full", passes=passes)
    stock, frames = load_stock(folder), clip(count, fps)
    wanted = stock(**video_inputs(stock, model, frames, QUESTION, fps)).logits[0, -1]
    got = scores_after(watch(engine, frames), engine=engine)
    spoken = got.isfinite()
    assert spoken.sum() > 100
    close(got[spoken], wanted[spoken])


@pytest.mark.parametrize("count", [8, 7])
@torch.no_grad()
def test_positions_are_the_stock_models(folder, model, plain, count):
    stock, frames = load_stock(folder), clip(count)
    inputs = video_inputs(stock, model, frames, QUESTION, 1.0)
    session = watch(plain, frames)
    store, places = session.store, []
    for span in store.spans:
        block, offset = store._entries[span.id].block, store._window.offsets[span.id]
        places.append(block.positions + torch.tensor(offset)[:, None])
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=1))
    while not request.done:
        places.append(request.pending().segment.places())
        (scores,) = run_pass(model, [request.pending()])
        if scores is not None:  # what follows is the answer's
            break
        request.accept(scores)
    assert torch.equal(torch.cat(places, 1), inputs["position_ids"][:, 0])


def test_half_the_tokens_and_no_fewer_frames(folder, model, plain):
    single = Engine(load(folder, device="cpu", pairs=False), encoder="full", compressor="identity", memory="full")
    frames = clip(8)
    pairs, alone = watch(plain, frames).stats(), watch(single, frames).stats()
    assert pairs.frames == alone.frames == 8 and pairs.tokens_seen * 2 == alone.tokens_seen
    assert (pairs.frames_held, alone.frames_held) == (4, 0) and pairs.held_s == 4.0
    assert pairs.tokens_read < 0.6 * alone.tokens_read


def test_what_is_held_is_said_and_counted(plain):
    session = plain.open()
    frames = clip(3)
    events = [session.push(frame) for frame in frames]
    assert [event.held for event in events] == [True, False, True]
    assert [event.tokens_seen for event in events] == [0, 6, 0]
    stats = session.stats()
    assert (stats.frames, stats.frames_held, stats.held_s) == (3, 2, 1.0)
    assert stats.memory_bytes["held_frames"] == 56 * 84 * 3
    session.close()
    assert session.stats().memory_bytes["held_frames"] == 0


def test_questions_leave_no_mark_on_the_stream(saving):
    """Wherever they come: what was read of a frame that waited is forgotten with the answer."""
    quiet, asked = saving.open(), saving.open()
    for frame in clip(9):
        quiet.push(frame)
        asked.push(frame)
        first = asked.ask("what is there ?", max_new_tokens=3)
        again = asked.ask("what is there ?", max_new_tokens=3)
        assert (first.text, first.citations, first.usage) == (again.text, again.citations, again.usage)
    torch.testing.assert_close(scores_after(quiet), scores_after(asked), rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["full", "rekv:topk=1,recent=1,window_tokens=20", "last_frames:frames=2"])
@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_both_frames_of_a_pair_are_cited_with_their_times(model, memory, passes):
    engine = Engine(model, encoder="full", compressor="identity", memory=memory, passes=passes)
    session = watch(engine, clip(7))
    cited = session.ask(QUESTION, max_new_tokens=2, since=6.0).citations
    assert [(one.start_s, one.end_s) for one in cited] == [(6.0, 6.0)] and cited[0].share == pytest.approx(1.0)
    session.push(clip(8)[7])
    cited = session.ask(QUESTION, max_new_tokens=2, since=6.0).citations
    assert [(one.start_s, one.end_s) for one in cited] == [(6.0, 7.0)]
    for one in session.ask(QUESTION, max_new_tokens=2).citations:
        assert one.start_s % 2 == 0 and one.end_s % 2 == 1, "whole pairs"
    assert session.store.spans[-1].end_s in (7.0, 0.0)


def test_interleaved_streams_equal_streams_apart(saving):
    """In different phases: while one stream's pair is complete, another's is not."""
    early, late = clip(9, seed=2), clip(8, seed=3)
    first, second = saving.open(), saving.open()
    for number, frame in enumerate(early):
        arrivals = [(first, frame)]
        if number >= 2:
            arrivals.append((second, late[number - 2]))
        saving.step(arrivals)
    for session, frames in ((first, early), (second, late[:7])):
        alone = watch(saving, frames)
        close(scores_after(session), scores_after(alone))
        assert session.ask(QUESTION).text == alone.ask(QUESTION).text


@pytest.mark.parametrize("memory", ["full", "rekv:topk=3,recent=2,window_tokens=20", "sliding_window:window_tokens=20"])
def test_packed_passes_equal_plain_ones(model, memory):
    """Retrieval too, where each layer sees other moments of the one video, and with a frame held back."""
    for count in (11, 12):
        scores = []
        for passes in ("plain", "packed"):
            engine = Engine(model, encoder="full", compressor="identity", memory=memory, passes=passes)
            scores.append(scores_after(watch(engine, clip(count)), engine=engine))
        close(*scores)


def test_a_fork_goes_on_as_its_original_does(saving):
    frames = clip(10)
    session = watch(saving, frames[:5])
    twin = session.fork()
    for frame in frames[5:]:
        session.push(frame)
    before = scores_after(twin)
    torch.testing.assert_close(before, scores_after(watch(saving, frames[:5])), rtol=0, atol=0)
    for frame in frames[5:]:
        twin.push(frame)
    torch.testing.assert_close(scores_after(twin), scores_after(session), rtol=0, atol=0)


def test_the_callers_picture_is_the_callers(plain):
    frames = clip(4)
    wanted = scores_after(watch(plain, frames))
    image, session = np.empty_like(frames[0].image), plain.open()
    for frame in frames:
        image[:] = frame.image
        session.push(Frame(image, frame.time_s))
    torch.testing.assert_close(scores_after(session), wanted, rtol=0, atol=0)


def test_frames_that_are_no_pair_are_read_alone(plain):
    """Another size, or too long ago: the one that waited is shown twice, under its own time."""
    small, large = clip(4, size=(56, 84)), clip(4, size=(84, 56))
    session = watch(plain, [small[0], small[1], small[2]])
    event = session.push(Frame(large[3].image, 3.0))
    assert event.held and event.tokens_seen == 6
    event = session.push(Frame(large[2].image, 3.0 + plain.model.patch_s + 1))
    assert event.held and event.tokens_seen == 6
    spans = [(span.start_s, span.end_s) for span in session.store.spans[1:]]
    assert spans == [(0.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert session.ask(QUESTION, max_new_tokens=1).usage.context_tokens > 0


def test_an_accelerator_sees_a_pair_as_one_frame(model):
    """Recomputing everything equals the dense tower; refreshes come every so many pairs; streams share a batch."""
    frames = make_frames(12)
    dense = Engine(model, encoder="full", compressor="identity", memory="full")
    whole = Engine(model, encoder="stc_published:interval=4,recompute_ratio=1.0", compressor="identity", memory="full")
    close(scores_after(watch(dense, frames)), scores_after(watch(whole, frames)))
    calls, flags = [], []

    class Counted(STCCacher):
        def encode(self, tower, hidden, states):
            calls.append(len(states))
            return super().encode(tower, hidden, states)

    sparse = Engine(model, encoder=Counted(interval=3), compressor="stc_pruner", memory="full")
    sessions = [sparse.open(), sparse.open(), sparse.open()]
    for number, frame in enumerate(frames):
        events = sparse.step([(session, frame) for session in sessions])
        if number % 2:
            flags.append([event.refreshed for event in events])
    assert flags == [[True] * 3, [False] * 3, [False] * 3] * 2
    assert calls == [3] * 6, "one batch a pair for all streams"


def test_prepared_steps_take_pairs(model):
    frames = clip(9, size=(84, 140))
    scores = []
    for prepared in (False, True):
        engine = Engine(model, encoder="stc_cacher:interval=3", compressor="identity", memory="full", passes="packed")
        if prepared:
            engine.prepare(most_frames=2, most_tokens=64, picture=(84, 140))
        session = watch(engine, frames)
        scores.append(scores_after(session, engine=engine))
    close(*scores)


def test_a_refused_pair_leaves_the_first_frame_waiting(model):
    engine = Engine(model, encoder="full", compressor="identity", memory="full", device_budget_bytes=60_000)
    session, frames, taken = engine.open(), clip(200), 0
    with pytest.raises(CapacityError):
        for frame in frames:
            session.push(frame)
            taken += 1
    assert taken % 2 == 1 and session.frames == taken
    before = scores_after(session)
    with pytest.raises(CapacityError):
        session.push(frames[taken + 1])
    torch.testing.assert_close(scores_after(session), before, rtol=0, atol=0)
    assert [frame.time_s for frame in session.waiting] == [frames[taken - 1].time_s]


def test_as_of_a_moment_whole_pairs_are_seen(plain):
    frames = clip(8)
    whole, half = watch(plain, frames), watch(plain, frames[:6])
    close(scores_after(whole, at=5.0), scores_after(half))
    close(scores_after(whole, at=6.0), scores_after(half))  # the pair of 6 and 7 ends at 7


def test_saved_with_a_frame_that_waits_it_goes_on_to_the_bit(folder, model, saving, tmp_path):
    frames = clip(10)
    session = watch(saving, frames[:5])
    caller, saved = Caller("me"), session.export()
    name, _ = snapshots.save(tmp_path, caller, saved, Limits())
    again = saving.load(snapshots.read(tmp_path, caller, name))
    torch.testing.assert_close(scores_after(again), scores_after(session), rtol=0, atol=0)
    for frame in frames[5:]:
        session.push(frame)
        again.push(frame)
    torch.testing.assert_close(scores_after(again), scores_after(session), rtol=0, atol=0)
    single = Engine(load(folder, device="cpu", pairs=False), **saving.methods)
    with pytest.raises(InputError, match="another model"):
        single.load(saved)


@dataclass(frozen=True)
class Changes(ResponsePolicy):
    """Speaks whenever it is shown a frame."""

    def new_state(self):
        return StreamState()

    def decide(self, moment, state):
        return SPEAK if moment.kept_ratio == 1.0 else SILENT


def test_rules_that_ask_look_at_every_frame_and_others_at_every_pair(plain):
    session = plain.open()
    rules = session.watch([Rule("asks", "Is there a square?"), Rule("sees", "Did it change?", Changes())])
    alerts = [alert for frame in clip(6) for alert in rules.look(frame, session.push(frame))]
    asks, sees = rules.status()
    assert (asks.looks, sees.looks) == (6, 3) and asks.mass is not None
    assert [alert.time_s for alert in alerts if alert.rule == "sees"] == [1.0, 3.0, 5.0]
    torch.testing.assert_close(scores_after(session), scores_after(watch(plain, clip(6))), rtol=0, atol=0)
