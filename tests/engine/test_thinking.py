"""Thoughts while watching: written in the gaps, never in a frame's way, seen by questions, perhaps not by frames."""

import itertools

import pytest
import torch
from stock_models import FAMILIES
from test_pairs import clip, scores_after
from tiny import make_family_folder

from onlooker.core.contracts import ClipModel
from onlooker.core.errors import InputError, ModelError
from onlooker.core.events import Noted
from onlooker.core.frame import Frame
from onlooker.engine import SLO, Engine, Scheduler
from onlooker.engine.window_engine import WindowEngine
from onlooker.models import load

MEMORIES = ("full", "rekv:topk=3,recent=2,window_tokens=40", "last_frames:frames=4", "streaming_vlm:vision_s=4")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """Each family in its own form: the Qwen ones in pairs."""
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def engine_of(model, think, memory="full", passes="plain") -> Engine:
    return Engine(model, encoder="full", compressor="identity", memory=memory, think=think, passes=passes)


def watched(engine: Engine, frames):
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return session


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_thought_of_every_clip_is_a_note_in_the_memory(model, memory):
    engine = engine_of(model, "vst:every_s=4,longest=6", memory)
    session = watched(engine, clip(14))
    notes, stats = session.notes(), session.stats()
    assert len(notes) == 3 and {note.kind for note in notes} == {"thought"} and stats.thoughts == stats.notes == 3
    assert stats.thoughts_dropped == 0 and stats.answers == 0
    # A segment ends with the first thing that is given out a whole segment behind its beginning.
    assert all(after.time_s - before.time_s >= 4 for before, after in itertools.pairwise(notes))
    assert notes[0].text.startswith("0-") or notes[0].text.startswith("1-")
    plain = watched(engine_of(model, "none", memory), clip(14))
    assert plain.notes() == [] and not torch.allclose(scores_after(session), scores_after(plain), atol=1e-3)


def test_a_thought_is_what_the_model_says_of_its_clip(model):
    """Against a stream whose notes are written by hand, from questions about the clip alone."""
    engine, by_hand = engine_of(model, "vst:every_s=4,longest=6,earlier=0"), engine_of(model, "none")
    one, other, since = engine.open(), by_hand.open(), None
    prompt = engine.serving.thinker.prompt
    for frame in clip(13):
        one.push(frame)
        taken = other.push(frame)
        if not taken.tokens_seen:
            continue
        since = taken.time_s if since is None else since
        if taken.time_s - since >= 4:
            said = other.ask(prompt, since=since, max_new_tokens=6).text
            if said:
                other.note(f"{since:.0f}-{taken.time_s:.0f} s: {said}", kind="thought")
            since = taken.time_s
    assert [note.text for note in one.notes()] == [note.text for note in other.notes()] != []
    torch.testing.assert_close(scores_after(one), scores_after(other), rtol=0, atol=1e-5)


@pytest.mark.proves("think_while_watching", 1)
@pytest.mark.parametrize("memory", MEMORIES)
def test_frames_are_to_the_bit_the_same_with_hidden_notes_or_without(model, memory):
    frames = clip(15)
    thinking = watched(engine_of(model, "segment_notes:every_s=4,longest=6", memory), frames)
    plain = watched(engine_of(model, "none", memory), frames)
    assert len(thinking.notes()) == 3 and thinking.stats().notes == 0
    (tensors, facts), (wanted, told) = thinking.store.export(), plain.store.export()
    assert facts == told and tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor), name
    assert not torch.allclose(scores_after(thinking), scores_after(plain), atol=1e-3), "a question sees them"
    early = thinking.time_s / 2
    before = [note for note in thinking.notes() if note.time_s <= early]
    answer = thinking.submit("which shape left first ?")
    held = [span for span in answer._view.held_spans if span.kind == "thought"]
    assert [span.end_s for span in held] == [note.time_s for note in thinking.notes()]
    if "last_frames" not in memory:
        asked = thinking.submit("which shape left first ?", at=early)
        assert sum(span.kind == "thought" for span in asked._view.held_spans) == len(before), "no later note is seen"


def test_hidden_notes_are_bounded_saved_and_forked(model):
    engine = engine_of(model, "segment_notes:every_s=2,longest=3,most=2")
    session = watched(engine, clip(15))
    for again in (session, engine.load(session.export()), session.fork()):
        kept = list(engine.serving.thinker.kept(again.states["think"]))
        assert kept == session.notes()[-2:]
        torch.testing.assert_close(scores_after(again), scores_after(session), rtol=0, atol=0)


def test_thoughts_are_told_and_found(model):
    session = watched(engine_of(model, "vst:every_s=4,longest=6"), clip(8))
    told = [event for event in session.events() if isinstance(event, Noted)]
    assert told == session.notes() and session.notes(told[0].text.split()[-1])


def test_a_prompt_that_does_not_fit_costs_the_thought_and_not_the_stream(tiny_model):
    engine = engine_of(tiny_model, "none")
    long = engine_of(tiny_model, f"vst:every_s=2,prompt={'what ' * 40000}")
    session = watched(long, clip(6))
    assert session.frames == 6 and session.notes() == [] and session.stats().thoughts_dropped >= 2
    torch.testing.assert_close(scores_after(session), scores_after(watched(engine, clip(6))), rtol=0, atol=0)


def test_bad_settings_are_refused(tiny_model):
    for text in ("vst:every_s=0", "vst:longest=0", "segment_notes:most=0", "vst:least_change=2"):
        with pytest.raises(InputError):
            engine_of(tiny_model, text)


# --------------------------------------------------------------------------------------------------- beside the streams


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drain(scheduler: Scheduler) -> int:
    steps = 0
    while not scheduler.step().idle:
        steps += 1
        assert steps < 500
    return steps


@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_notes_are_decoded_while_frames_come_and_are_the_same(tiny_model, passes):
    """Two streams; every frame is taken in the step after it came, whatever is being written."""
    engine = engine_of(tiny_model, "vst:every_s=3,longest=8", passes=passes)
    clips = [clip(10, seed=seed) for seed in range(2)]
    wanted = [watched(engine, frames).notes() for frames in clips]
    clock = Clock()
    scheduler = Scheduler(engine, SLO(workers=0, step_s=60.0, first_token_s=120.0), now=clock)
    queues = [scheduler.open(fps=None) for _ in clips]
    together = 0
    for number in range(10):
        for queue, frames in zip(queues, clips, strict=True):
            queue.submit(frames[number])
        report = scheduler.step()
        assert len(report.events) == 2, "frames never wait for notes"
        together += report.probes > 0
        for _ in range(40):  # the gap before the next frame
            scheduler.step()
        clock.now += 1.0
    assert [queue.session.notes() for queue in queues] == wanted
    assert scheduler.stats().background_dropped == 0
    # In gaps that are too short, notes ride with the frames, and what is due meanwhile is dropped and counted.
    busy = [scheduler.open(fps=None) for _ in clips]
    for number in range(10):
        for queue, frames in zip(busy, clips, strict=True):
            queue.submit(frames[number])
        report = scheduler.step()
        assert len(report.events) == 2
        together += report.probes > 0
    assert together > 3
    drain(scheduler)
    for queue in busy:
        stats = queue.session.stats()
        assert stats.frames == 10 and stats.thoughts + stats.thoughts_dropped == 3 and stats.thoughts >= 1
    scheduler.close()


def test_notes_that_are_due_together_are_written_in_turn(tiny_model):
    """Six streams' notes are due in one step: no step has more of them than may be, and all are written."""
    engine, clock = engine_of(tiny_model, "segment_notes:every_s=4,longest=6"), Clock()
    scheduler = Scheduler(engine, SLO(workers=0, step_s=60.0, first_token_s=120.0, background_share=0.0), now=clock)
    queues, frames = [scheduler.open(fps=None) for _ in range(6)], clip(6)
    most, finished = 0, []
    for frame in frames:
        for queue in queues:
            queue.submit(frame)
        scheduler.step()
        for _ in range(60):
            report = scheduler.step()
            most = max(most, report.probes)
            finished += [n for n, queue in enumerate(queues) if queue.session.notes() and n not in finished]
    stats = scheduler.stats()
    # Two at first, while nobody knows what one more costs; then one.
    assert 1 <= most <= 2 and stats.background_deferred > 0 and stats.background_dropped == 0
    assert finished == list(range(6)), "the oldest first"
    alone = watched(engine, frames).notes()
    assert [queue.session.notes() for queue in queues] == [alone] * 6 and alone
    scheduler.close()


def test_thoughts_give_way_to_frames_that_wait_and_are_dropped_when_too_old_or_too_many(tiny_model):
    engine, clock = engine_of(tiny_model, "vst:every_s=1,longest=30"), Clock()
    scheduler = Scheduler(
        engine, SLO(workers=0, most_frames=1, most_background=1, background_s=5.0, first_token_s=120.0), now=clock
    )
    queues = [scheduler.open(fps=None) for _ in range(3)]
    frames = clip(4)
    for number in range(2):
        for queue in queues:
            queue.submit(frames[number])
        for _ in range(3):
            scheduler.step()
    stats = scheduler.stats()
    assert stats.background == 1 and stats.background_dropped == 2, "one is in flight, no more may be"
    for queue in queues:
        queue.submit(frames[2])
    scheduler.step()
    assert scheduler.stats().background_deferred > stats.background_deferred, "frames wait: nothing else takes part"
    clock.now += 6.0
    drain(scheduler)
    stats = scheduler.stats()
    assert stats.background == 0 and stats.background_dropped >= 3
    assert all(queue.session.stats().frames == 3 for queue in queues)
    for queue in queues:
        queue.submit(frames[3])
    scheduler.step()
    scheduler.close()


class Blind(ClipModel):
    name, device = "blind", torch.device("cpu")

    def answer(self, images, question, *, wishes, max_new_tokens=64, seed=None):
        raise NotImplementedError


def test_a_model_without_an_adapter_does_not_think():
    with pytest.raises(ModelError, match="VST needs"):
        WindowEngine(Blind(), think="vst")
    session = WindowEngine(Blind()).open()
    session.push(clip(1)[0])
    assert session.notes() == []


def test_a_work_of_the_background_says_so(tiny_model):
    from onlooker.engine.probing import Reply

    session = watched(engine_of(tiny_model, "none"), [Frame(clip(1)[0].image, 0.0)])
    assert Reply(session, "what ?", 4, priority=1).pending().priority == 1
    assert Reply(session, "what ?", 4).pending().priority == 0


@pytest.mark.proves("vst", 3)
@pytest.mark.parametrize("memory", ["full", "streaming_vlm:vision_s=4"])
def test_a_question_does_as_much_before_its_first_token_with_thoughts_as_without(model, memory):
    """Thoughts are in the memory when a question comes: it reads its own words in as many passes, not theirs."""
    done = {}
    for think in ("vst:every_s=4,longest=6", "none"):
        session = watched(engine_of(model, think, memory), clip(14))
        request, works = session.submit("which shape left first ?"), []
        while not request.has_spoken:
            works.append(len(request.pending().embeddings))
            session._engine.step([], [request])
        done[think] = works
        assert bool(session.notes()) == (think != "none")
    assert done["none"] == done["vst:every_s=4,longest=6"]
