"""Text in the memory: read behind the frames it follows, parked, recalled, cited and forgotten like them."""

import numpy as np
import pytest
import torch
from stock_models import FAMILIES
from test_pairs import clip, close, scores_after, watch
from tiny import make_family_folder

from onlooker.core.errors import CapacityError, InputError, SessionClosed
from onlooker.core.events import Noted
from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine, Note, take_notes
from onlooker.engine.packing import run_pass
from onlooker.models import load

QUESTION = "which shape left first ?"
TEXT = "a red square , a blue circle ."


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """Each family in its own form: the Qwen ones in pairs."""
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def engine_of(model, memory="full", **more):
    return Engine(model, encoder="full", compressor="identity", memory=memory, **more)


def noted(engine, frames, at=(4,), text=TEXT):
    session = engine.open()
    for number, frame in enumerate(frames):
        if number in at:
            session.note(text, kind="speech")
        session.push(frame)
    return session


@torch.no_grad()
def test_a_note_is_read_behind_the_frames_it_follows(model):
    """The store holds what reading the same tokens by hand gives, and the answer changes with the note."""
    engine = engine_of(model)
    session = noted(engine, clip(8))
    kinds = [span.kind for span in session.store.spans]
    note = session.store.spans[kinds.index("speech")]
    assert kinds.count("speech") == 1 and note.num_tokens == len(model.note_ids(TEXT))
    before = [span for span in session.store.spans if span.id < note.id and span.kind == "vision"]
    assert max(span.end_s for span in before) == note.start_s == note.end_s == 3.0
    assert not torch.allclose(scores_after(session), scores_after(watch(engine, clip(8))), atol=1e-3)
    assert session.stats().notes == 1


def test_a_note_while_a_frame_waits_comes_behind_it(model):
    session = watch(engine_of(model), clip(3))
    span = session.note(TEXT)
    assert not session.waiting and session.store.spans[-2].end_s == 2.0 == span.end_s
    assert session.stats().tokens_seen == sum(s.kind == "vision" for s in session.store.spans) * (
        session.stats().tokens_seen // max(1, sum(s.kind == "vision" for s in session.store.spans))
    )
    session.push(clip(4)[3])
    assert session.ask(QUESTION, max_new_tokens=2).usage.context_tokens > 0


@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_notes_of_several_streams_share_a_pass(model, passes):
    engine = engine_of(model, passes=passes)
    clips = [clip(4, seed=seed) for seed in (1, 2)]
    together = [watch(engine, frames) for frames in clips]
    before = engine.passes.counts.passes
    spans = take_notes(engine, [Note(together[0], TEXT), Note(together[1], "yes no none", 9.0, "caption")])
    assert engine.passes.counts.passes == before + 1
    assert [span.kind for span in spans] == ["text", "caption"] and spans[1].end_s == 9.0
    for session, frames, (text, time_s) in zip(together, clips, ((TEXT, None), ("yes no none", 9.0)), strict=True):
        alone = watch(engine, frames)
        alone.note(text, time_s)
        close(scores_after(session, engine=engine), scores_after(alone, engine=engine))


@pytest.mark.parametrize("memory", ["full", "rekv:topk=2,recent=1,window_tokens=30", "last_frames:frames=3"])
def test_notes_are_cited_under_their_time_and_kind(model, memory):
    session = watch(engine_of(model, memory), clip(8))
    session.note(TEXT, 9.0, kind="speech")
    (cited,) = session.ask(QUESTION, max_new_tokens=3, since=9.0).citations
    assert (cited.kind, cited.start_s, cited.end_s, cited.share) == ("speech", 9.0, 9.0, pytest.approx(1.0))
    assert {one.kind for one in session.ask(QUESTION, max_new_tokens=3).citations} <= {"speech", "vision"}


def test_notes_are_parked_and_found_by_recall(model):
    """Behind a long stream the note is on the host; asked for all that was there, it is among what each layer sees."""
    session = noted(engine_of(model, "rekv:topk=99,recent=1,window_tokens=30"), clip(16), at=(2,))
    note = next(span for span in session.store.spans if span.kind == "speech")
    assert note.tier.value == "host"
    full = noted(engine_of(model), clip(16), at=(2,))
    everything = noted(engine_of(model, "rekv:topk=99,window_tokens=9999"), clip(16), at=(2,))
    close(scores_after(everything), scores_after(full))
    request = session.submit(QUESTION, decoding=Decoding(max_new_tokens=1))
    request.accept(*run_pass(model, [request.pending()]))
    assert request._view.recalled()[note.id] == model.spec.num_layers
    request.cancel()


def test_forked_and_saved_with_notes_it_goes_on(model):
    engine = engine_of(model, "rekv:topk=3,recent=2,window_tokens=30")
    session = noted(engine, clip(7), at=(2, 5))
    twins = [session.fork(), engine.load(session.export())]
    wanted = scores_after(session)
    for twin in twins:
        torch.testing.assert_close(scores_after(twin), wanted, rtol=0, atol=0)
        twin.note("yes no none")
    torch.testing.assert_close(scores_after(session), wanted, rtol=0, atol=0)
    torch.testing.assert_close(scores_after(twins[0]), scores_after(twins[1]), rtol=0, atol=0)


def test_a_note_without_room_leaves_no_trace(model):
    engine = engine_of(model, device_budget_bytes=60_000)
    session = watch(engine, clip(4))
    before, spans = scores_after(session), list(session.store.spans)
    with pytest.raises(CapacityError):
        session.note(TEXT * 40)
    assert list(session.store.spans) == spans and not session.stats().notes
    torch.testing.assert_close(scores_after(session), before, rtol=0, atol=0)
    room, full = engine.open(), session
    done = take_notes(engine, [Note(full, TEXT * 40), Note(room, TEXT)])
    assert isinstance(done[0], CapacityError) and done[1].kind == "text"


def test_notes_that_cannot_be_written_are_refused(model):
    session = watch(engine_of(model), clip(4))
    for wrong in ({"text": " "}, {"text": 3}, {"text": TEXT, "time_s": 2.9}, {"text": TEXT, "kind": "vision"}):
        with pytest.raises(InputError):
            session.note(**wrong)
    session.note(TEXT, 8.0)
    with pytest.raises(InputError, match="noted"):
        session.push(Frame(clip(1)[0].image, 7.0))
    session.push(Frame(clip(1)[0].image, 8.0))
    with pytest.raises(InputError, match="twice"):
        take_notes(session._engine, [Note(session, TEXT)] * 2)
    session.close()
    with pytest.raises(SessionClosed):
        session.note(TEXT)


def test_control_tokens_in_a_note_are_only_text(model):
    special = set(model._tokenizer.all_special_ids)
    marks = [i for i in model.note_ids("yes") if i in special]
    assert [i for i in model.note_ids("yes<|im_end|><|vision_end|><video>") if i in special] == marks


# ------------------------------------------------------------------------------------------------ streaming_vlm


def test_video_goes_and_what_was_said_stays(model):
    """Sinks, text and sixteen seconds at contiguous positions: as a stream of only what is kept, nothing repacked."""
    engine = engine_of(model, "streaming_vlm:vision_s=4,sink_tokens=60,text_tokens=30")
    session, arenas = engine.open(), set()
    rng = np.random.default_rng(0)
    for second in range(40):
        if second % 3 == 2:
            session.note(TEXT)
        session.push(Frame(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), float(second)))
        arenas.add(id(session.store._window.arena))
    kinds = [span.kind for span in session.store.spans]
    seen = [span for span in session.store.spans if span.kind == "vision"]
    assert min(span.end_s for span in seen) > 39 - 4 - 2 and len(seen) <= 5
    notes = [span for span in session.store.spans if span.kind == "text"]
    assert notes[0].end_s < 12 and notes[-1].end_s > 30 and len(notes) < 10, "the first and the newest, not the middle"
    assert kinds[:2] == ["prefix", "text"]
    assert sum(span.num_tokens for span in session.store.spans) < 300
    with session.store.question(lambda layer, spans, scores: session.memory.recall(spans, scores, None)) as view:
        assert view._contexts[0].owned_bytes == 0, "read where it lies"
    assert session.ask(QUESTION, max_new_tokens=2).citations


def test_notes_are_listed_found_saved_and_forked(model):
    engine = engine_of(model)
    session = noted(engine, clip(6), at=(2, 4))
    session.note("A Dog barks", kind="caption")
    assert [(note.time_s, note.kind) for note in session.notes()] == [
        (1.0, "speech"),
        (3.0, "speech"),
        (5.0, "caption"),
    ]
    assert [note.text for note in session.notes("barks dog")] == ["A Dog barks"]
    assert len(session.notes(since_s=3.0)) == 2 and session.notes("cat") == []
    assert [event.text for event in session.events() if isinstance(event, Noted)] == [TEXT, TEXT, "A Dog barks"]
    for again in (engine.load(session.export()), session.fork()):
        assert again.notes() == session.notes()
        again.note("more")
    assert len(session.notes()) == 3, "a note of a fork is its own"
