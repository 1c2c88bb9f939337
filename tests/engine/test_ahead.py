"""Frames of the next step that are seen while the words of this one are looked at: nothing else changes by it."""

import pytest
import torch
from moving_pictures import make_frames

from onlooker.core.errors import SessionClosed
from onlooker.core.events import Failed
from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine
from onlooker.engine.saving import Saved
from onlooker.engine.scheduler import SLO, Scheduler
from onlooker.engine.stream_queue import StreamQueue
from onlooker.models import load

QUESTION = "which shape left first ?"
WRITTEN_IN_PLACE = "stc_published:interval=4,recompute_ratio=0.5"


def make_engine(tiny_model, **methods) -> Engine:
    methods = {"encoder": WRITTEN_IN_PLACE, "compressor": "stc_pruner:keep=2", **methods}
    return Engine(tiny_model, **{"memory": "sliding_window:window_tokens=40", **methods})


def make_scheduler(engine, ahead=True) -> Scheduler:
    return Scheduler(engine, SLO(workers=0), ahead=ahead, now=lambda: 0.0)


@pytest.fixture(autouse=True)
def no_small_states(monkeypatch):
    """States that are written in place are so however small the model is."""
    monkeypatch.setattr("onlooker.engine.methods.LARGE_STATE_BYTES", 0)


def watched(engine, ahead) -> tuple[list[str], list[Saved]]:
    """Three streams through twelve frames each, of which two wait at a time, and questions between them."""
    scheduler = make_scheduler(engine, ahead)
    queues = [scheduler.adopt(scheduler.engine.open(), 1.0, backlog=2) for _ in range(3)]
    clips = [make_frames(12, seed=number) for number in range(3)]
    requests = []
    for n in range(12):
        for queue, clip in zip(queues, clips, strict=True):
            queue.submit(clip[n])
        if n % 4 == 2:
            requests.append(scheduler.ask(queues[n % 3], QUESTION, decoding=Decoding(max_new_tokens=3)))
        if n % 2:
            scheduler.step()
            scheduler.step()
    while not scheduler.step().idle:
        pass
    assert [queue.counts.taken for queue in queues] == [12, 12, 12]
    exported = [queue.session.export() for queue in queues]
    return [request.answer().text for request in requests], exported


def test_streams_and_answers_are_the_same(tiny_model):
    (told, ahead), (told_plainly, plain) = (watched(make_engine(tiny_model), way) for way in (True, False))
    assert told == told_plainly
    for one, other in zip(ahead, plain, strict=True):
        assert one.facts["frames"] == other.facts["frames"]
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_next_frames_are_seen_before_the_words_are_looked_at(tiny_model):
    scheduler = make_scheduler(make_engine(tiny_model))
    queue = scheduler.adopt(scheduler.engine.open(), 1.0, backlog=4)
    first, second, third = make_frames(3)
    queue.submit(first)
    scheduler.step()
    queue.submit(second)
    queue.submit(third)
    report = scheduler.step()
    assert [event.time_s for _, event in report.events] == [second.time_s]
    arrival = queue.session.arrival
    assert arrival is not None and arrival.frame is third and arrival.seen is not None
    assert not queue.is_waiting and scheduler.stats().waiting == 1 and scheduler.wait(0.0)
    seen = arrival.seen
    (told,) = scheduler.step().events
    assert told[1].time_s == third.time_s and queue.session.arrival is None and seen.patch.frames == (third,)
    assert scheduler.step().idle and not scheduler.wait(0.0)


def with_one_ahead(engine) -> tuple[Scheduler, StreamQueue, list]:
    """A stream of which a frame is seen ahead, and how its frames were settled."""
    scheduler, settled = make_scheduler(engine), []
    queue = scheduler.adopt(engine.open(), 1.0, backlog=8, settle=lambda queued, what: settled.append((queued, what)))
    for frame in make_frames(6):
        queue.submit(frame)
    scheduler.step()
    assert queue.session.arrival is not None
    return scheduler, queue, settled


def test_a_stream_that_ends_drops_it_and_tells(tiny_model):
    scheduler, queue, settled = with_one_ahead(make_engine(tiny_model))
    queue.close()
    assert queue.counts.taken == 1 and queue.counts.dropped == 5 and len(settled) == 6
    assert all(isinstance(what, SessionClosed) for _, what in settled[1:])
    assert scheduler.step().idle


@pytest.mark.parametrize("way", ["export", "fork", "note"])
def test_between_steps_a_stream_is_as_if_it_had_not_been_seen(tiny_model, way):
    engine = make_engine(tiny_model)
    scheduler, queue, _ = with_one_ahead(engine)
    if way == "note":
        queue.session.note("a red ball came in")
        assert queue.session.arrival is None
        while not scheduler.step().idle:
            pass
        assert queue.counts.taken == 6 and queue.counts.failed == 0
        return
    twin = engine.load(queue.session.export()) if way == "export" else queue.session.fork()
    while not scheduler.step().idle:
        pass
    for frame in make_frames(6)[1:]:
        twin.push(frame)
    one, other = queue.session.export(), twin.export()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors)


def test_who_cannot_be_seen_fails_in_its_own_step_and_alone(tiny_model):
    scheduler = make_scheduler(make_engine(tiny_model))
    good, bad = (scheduler.adopt(scheduler.engine.open(), 1.0, backlog=4) for _ in range(2))
    frames = make_frames(3)
    for queue in (good, bad):
        queue.submit(frames[0])
    scheduler.step()
    request = scheduler.ask(good, QUESTION, decoding=Decoding(max_new_tokens=8))
    good.submit(frames[1])
    good.submit(frames[2])
    bad.submit(frames[1])
    broken = Frame(frames[2].image, frames[2].time_s)
    object.__setattr__(broken, "image", "no picture")
    bad.submit(broken)
    report = scheduler.step()
    assert [one for one, _ in report.texts] == [request] and not report.broken
    assert [event.time_s for _, event in report.events] == [frames[1].time_s] * 2
    by_queue = dict(scheduler.step().events)
    assert by_queue[good].time_s == frames[2].time_s and isinstance(by_queue[bad], Failed)
    assert good.counts.taken == 3 and bad.counts.failed == 1


@pytest.mark.parametrize("kind", ["think", "compressor"])
def test_not_where_somebody_looks_between_steps(tiny_model, kind):
    methods = {"think": {"think": "clock_notes"}, "compressor": {"compressor": "holitom"}}[kind]
    assert not make_scheduler(make_engine(tiny_model, **methods))._ahead.is_on
    assert make_scheduler(make_engine(tiny_model))._ahead.is_on


def test_by_itself_only_where_the_device_works_beside_the_host(tiny_model):
    assert not make_scheduler(make_engine(tiny_model), None)._ahead.is_on


@pytest.mark.gpu
@pytest.mark.parametrize("prepared", [False, True])
def test_on_a_card_streams_and_answers_are_the_same(tiny_folder, prepared):
    model = load(tiny_folder, device="cuda", dtype="float32")
    seen = []
    for ahead in (False, True):
        engine = make_engine(model, encoder="stc_cacher")
        if prepared:
            picture = make_frames(1)[0].image.shape[:2]
            engine.prepare(most_frames=4, most_tokens=64, picture=picture)
        seen.append(watched(engine, ahead))
    (told_plainly, plain), (told, others) = seen
    assert told == told_plainly
    for one, other in zip(others, plain, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.allclose(one.tensors[n].float(), other.tensors[n].float(), atol=1e-3) for n in one.tensors)
