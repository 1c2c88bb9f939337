"""Many streams on one engine: freshest frames, deadlines, refusals, and the degrade levels down and up."""

import dataclasses
import threading

import numpy as np
import pytest
from moving_pictures import make_frames

from onlooker.core.codec import CodecRecord
from onlooker.core.contracts import SchedulePolicy
from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine import Decoding, Engine
from onlooker.engine.load import Recent, Share, StepCost
from onlooker.engine.scheduler import SLO, Busy, DegradeLevel, Scheduler, default_levels

QUESTION = "which shape left first ?"


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def engine(tiny_model) -> Engine:
    saving = {"encoder": "stc_published:interval=3,recompute_ratio=0.25", "compressor": "stc_pruner:keep=2"}
    return Engine(tiny_model, memory="sliding_window:window_tokens=40", **saving)


def make_scheduler(engine, clock=None, **slo) -> Scheduler:
    return Scheduler(engine, SLO(**{"workers": 0} | slo), now=clock or Clock())


def slow_down(scheduler: Scheduler, frame_s: float, base_s: float = 0.0) -> None:
    """As if many steps had taken so long."""
    scheduler.cost = StepCost()
    for _ in range(100):
        for frames in (1, 4, 9):
            scheduler.cost.note(frames, 0, base_s + frame_s * frames)


def test_steps_take_frames_and_questions_of_all(engine):
    scheduler = make_scheduler(engine)
    queues = [scheduler.open() for _ in range(3)]
    assert scheduler.step().idle and not scheduler.wait(0.0)
    for number, queue in enumerate(queues):
        for frame in make_frames(4, seed=number):
            assert queue.submit(frame)
            scheduler.step()
    assert [queue.counts.taken for queue in queues] == [4, 4, 4]
    request = scheduler.ask(queues[0], QUESTION, decoding=Decoding(max_new_tokens=4))
    queues[1].submit(Frame(make_frames(1)[0].image, 9.0))
    report = scheduler.step()
    assert [queue for queue, _ in report.events] == [queues[1]] and report.texts[0][0] is request
    while not request.done:
        scheduler.step()
    alone = engine.open()
    for frame in make_frames(4, seed=0):
        alone.push(frame)
    assert request.answer().text == alone.ask(QUESTION, max_new_tokens=4).text
    stats = scheduler.stats()
    assert stats.frames.taken == 13 and stats.questions == 0 and stats.first_token_p95_s is not None


def test_the_freshest_frame_wins_and_the_other_is_counted(engine):
    scheduler = make_scheduler(engine)
    queue = scheduler.open()
    first, second, third = make_frames(3)
    queue.submit(first)
    queue.submit(second)
    assert queue.counts.dropped == 1
    (lane_and_event,) = scheduler.step().events
    assert lane_and_event[1].time_s == second.time_s
    with pytest.raises(InputError, match="order"):
        queue.submit(second)
    queue.submit(third)
    queue.close()
    queue.close()
    assert scheduler.stats().frames.dropped == 2 and scheduler.stats().streams == 0
    with pytest.raises(SessionClosed):
        queue.submit(Frame(third.image, 99.0))


def test_the_encoder_account_goes_over_frames_that_were_left_out(engine):
    """Of one that a newer frame replaced, and of one that came too soon: motion since a frame that nobody saw would be
    taken for motion since the last that was seen."""

    def said(time_s: float) -> Frame:
        motion, known = np.full((4, 4, 2), 0.25, np.float32), np.ones((4, 4), np.float32)
        return Frame(make_frames(1)[0].image, time_s, codec=CodecRecord("P", 1, 0, 100, motion, known))

    queue = make_scheduler(engine).open(fps=2.0)
    told = [queue.submit(said(time_s)) for time_s in (0.0, 0.5, 0.7, 0.9, 1.0)]
    assert [one is None for one in told] == [False, False, True, True, False]
    assert queue.counts.dropped == 2 and queue.counts.thinned == 2 and told[-1] is not None
    for shown in (told[-1].frame, told[-1].picture):
        assert shown is not None and shown.codec is not None and shown.codec.motion is not None
        assert (shown.codec.num_pictures, shown.codec.num_bytes) == (5, 500)
        assert np.all(shown.codec.motion == 5 * 0.25)


def test_oldest_first_and_lag_is_from_the_submission(engine):
    clock = Clock()
    scheduler = make_scheduler(engine, clock, most_frames=2, frame_lag_s=1.0)
    queues = [scheduler.open() for _ in range(3)]
    for time_s, queue in ((0.0, queues[2]), (0.5, queues[0]), (0.6, queues[1])):
        clock.time = time_s
        queue.submit(make_frames(1)[0])
    clock.time = 1.2
    report = scheduler.step()
    assert [queue for queue, _ in report.events] == [queues[2], queues[0]]
    assert report.lags_s[0] >= 1.2 and report.lags_s[1] >= 0.7
    assert queues[2].counts.late == 1
    assert [queue for queue, _ in scheduler.step().events] == [queues[1]]


def test_a_frame_rate_is_kept(engine):
    queue = make_scheduler(engine).open(fps=2.0)
    taken = [time_s / 30 for time_s in range(90) if queue.submit(Frame(make_frames(1)[0].image, time_s / 30))]
    assert len(taken) in (6, 7) and queue.counts.thinned == 90 - len(taken)
    assert queue.submit(Frame(make_frames(1)[0].image, 30.0)) and not queue.submit(Frame(make_frames(1)[0].image, 30.1))


def test_steps_are_short_enough_for_a_question(engine):
    scheduler = make_scheduler(engine, most_frames=8, first_token_s=0.5)
    slow_down(scheduler, frame_s=0.1)
    queues = [scheduler.adopt(engine.open()) for _ in range(4)]
    for queue in queues:
        queue.submit(make_frames(1)[0])
    assert len(scheduler.step().events) == 2, "two frames of 100 ms fit into half of 500 ms"


def test_streams_and_questions_are_refused_before_promises_break(engine):
    scheduler = make_scheduler(engine, most_questions=1)
    queue = scheduler.open()
    queue.submit(make_frames(1)[0])
    scheduler.step()
    scheduler.ask(queue, QUESTION)
    with pytest.raises(Busy, match="1 in flight") as refusal:
        scheduler.ask(queue, QUESTION)
    assert refusal.value.retry_s >= 1
    slow_down(scheduler, frame_s=0.2)
    for _ in range(3):
        scheduler.open()
    with pytest.raises(Busy, match="of the time would be promised") as refusal:
        scheduler.open()
    assert refusal.value.retry_s == 15.0
    assert scheduler.stats().refused == 2
    queue.close()
    other = scheduler.adopt(engine.open())
    other.submit(make_frames(1)[0])
    scheduler.step()
    slow_down(scheduler, frame_s=0.01, base_s=0.6)
    scheduler.slo = SLO(workers=0, most_questions=2)
    alone = scheduler.ask(other, QUESTION)
    with pytest.raises(Busy, match="a step takes"):
        scheduler.ask(other, QUESTION)
    alone.cancel()
    assert scheduler.step().idle and not scheduler.wait(0.0), "a cancelled question is no work"


def test_the_first_stream_is_let_in_however_slow_the_engine_is(engine):
    scheduler = make_scheduler(engine)
    slow_down(scheduler, frame_s=5.0)
    scheduler.open()
    with pytest.raises(Busy):
        scheduler.open()


def test_memory_is_a_reason_to_refuse(engine):
    scheduler = make_scheduler(engine, device_budget_bytes=1000)
    scheduler.open()
    with pytest.raises(Busy, match="bytes are held"):
        scheduler.open()


def test_the_ladder_is_descended_and_climbed(engine):
    clock = Clock()
    scheduler = make_scheduler(engine, clock, patience_s=2.0, recover_s=5.0)
    names = [degrade_level.name for degrade_level in scheduler.levels]
    assert names == [
        "everything",
        "half the frames",
        "half the frames, less of the compressor",
        "half the frames, less of the compressor, less of the encoder",
    ]
    queue = scheduler.adopt(engine.open(), fps=2.0)
    slow_down(scheduler, frame_s=0.9)
    seen, image = [], make_frames(1)[0].image

    def watch(seconds: int, fps: float = 2.0) -> None:
        """QueuedFrame frames at a rate, and pretend that steps cost what was said."""
        for _ in range(seconds):
            for half in range(2):
                clock.time += 0.5
                if half < fps:
                    queue.submit(Frame(image, clock.time))
            scheduler._settle()
            seen.append(scheduler.stats().level)

    watch(20)
    assert seen[0] == 0 and seen[-1] == 1, "half the frames are 0.9 of the time: enough"
    with pytest.raises(Busy, match="half the frames"):
        scheduler.open(0.01)
    assert 7 <= queue.counts.shed <= 12, "every second frame since then"
    slow_down(scheduler, frame_s=3.0)
    watch(20)
    assert scheduler.stats().level == 3
    assert engine.serving.compressor.keep == 1 and engine.serving.encoder.interval == 6
    ((_, event),) = scheduler.step().events
    assert event.tokens_kept == 1
    slow_down(scheduler, frame_s=3.0)
    watch(200, fps=0)
    assert scheduler.stats().degrade_level == "everything", "who submits nothing asks for nothing"
    assert engine.serving.compressor.keep == 2 and engine.serving.encoder.interval == 3
    scheduler.close()


def test_a_ladder_has_what_the_methods_have(tiny_model):
    plain = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    assert [degrade_level.name for degrade_level in default_levels(plain)] == ["everything", "half the frames"]
    with pytest.raises(InputError, match="a scheduler needs a degrade level"):
        Scheduler(plain, SLO(workers=0), levels=())
    assert Scheduler(plain, SLO(workers=0), levels=[DegradeLevel("all")]).degrade_level.name == "all"


def test_pictures_are_resized_ahead_in_threads(engine):
    small, large = engine.open(), make_frames(3, size=112)
    for frame in large:
        small.push(frame)
    scheduler = Scheduler(engine, SLO(workers=2))
    queue = scheduler.open()
    for frame in large:
        feeder = threading.Thread(target=queue.submit, args=(frame,))
        feeder.start()
        assert scheduler.wait(200.0)
        feeder.join()
        scheduler.step()
    assert queue.counts.taken == 3
    answers = {session.ask(QUESTION, max_new_tokens=4).text for session in (small, queue.session)}
    assert len(answers) == 1
    scheduler.close()


def test_promises_are_checked():
    for wrong in ({"frame_lag_s": 0}, {"most_frames": 0}, {"most_load": 0.0}, {"step_s": 0}, {"workers": -1}):
        with pytest.raises(InputError):
            SLO(**wrong)


def test_estimates_settle_and_do_not_grow():
    cost = StepCost()
    for number in range(300):
        frames, questions = number % 5, number % 3 == 0
        cost.note(frames, questions, 0.02 + 0.005 * frames + 0.01 * questions)
    assert cost.base_s == pytest.approx(0.02, rel=0.1) and cost.frame_s == pytest.approx(0.005, rel=0.1)
    assert cost.frames_within(0.05, 0, 16) in (5, 6)
    share = Share(over_s=10.0)
    for now in range(100):
        share.note(0.5, float(now))
    assert share.at(99.0) == pytest.approx(0.5, rel=0.1) and share.at(200.0) < 0.01
    recent = Recent()
    assert recent.percentile(95) is None
    for number in range(10_000):
        recent.note(float(number))
    assert recent.percentile(0) > 9000


def test_works_of_lower_priority_take_a_share_of_a_step():
    cost = StepCost()
    assert cost.works_within(0.1, 4, 0, most=16, learnt=8) == 2, "nobody knows yet"
    for number in range(200):
        frames, works = number % 5, number % 4
        cost.note(frames, works, 0.02 + 0.005 * frames + 0.004 * (works > 0) + 0.001 * max(0, works - 1), works)
    assert cost.work_s == pytest.approx(0.001, rel=0.1)
    assert cost.works_within(0.1, 0, 0, most=16, learnt=8) == 3, "a tenth of 24 ms"
    assert cost.works_within(0.1, 4, 0, most=16, learnt=8) == 5, "a tenth of 44 ms"
    assert cost.works_within(0.1, 4, 0, most=2, learnt=8) == 2
    assert cost.works_within(0.0, 4, 0, most=16, learnt=8) == 1, "one always may"
    with pytest.raises(InputError, match="background_share"):
        SLO(background_share=-0.1)


def test_a_fast_stream_does_not_lose_its_turn_by_submitting(engine):
    clock = Clock()
    scheduler = make_scheduler(engine, clock, most_frames=1)
    fast, slow = scheduler.open(fps=None), scheduler.open(fps=None)
    for frame in make_frames(3):
        fast.submit(frame)
        clock.time += 0.1
    slow.submit(make_frames(1)[0])
    report = scheduler.step()
    assert [queue for queue, _ in report.events] == [fast] and report.frames_queued[0].arrived_s == pytest.approx(0.2)


def test_a_backlog_keeps_its_order_and_is_not_shed(engine):
    told = []
    scheduler = make_scheduler(engine)
    scheduler.levels = (DegradeLevel("half the frames", 0.5),)
    queue = scheduler.adopt(
        engine.open(), None, backlog=2, settle=lambda queued, outcome: told.append((queued, outcome))
    )
    first, second, third = make_frames(3)
    frames_queued = [queue.submit(first, note="first"), queue.submit(second)]
    with pytest.raises(Busy, match="2 frames wait"):
        queue.submit(third)
    assert not queue.wait_for_room(0.0)
    scheduler.step()
    assert queue.wait_for_room(0.0) and queue.submit(third), "a refused frame may come again"
    scheduler.step()
    assert [queued for queued, _ in told] == frames_queued and frames_queued[0].note == "first"
    assert [outcome.event.time_s for _, outcome in told] == [first.time_s, second.time_s]
    queue.close()
    assert isinstance(told[-1][1], SessionClosed) and queue.counts.dropped == 1


def test_who_fails_alone_fails_alone(tiny_model):
    class Fragile(Engine):
        def _step(self, arrivals, requests, looking=None):
            if any(session is self.bad for session, _ in arrivals) or any(one is self.bad for one in requests):
                raise RuntimeError("this one cannot be stepped")
            return super()._step(arrivals, requests, looking)

    engine = Fragile(tiny_model, memory="full")
    engine.bad = None
    scheduler = make_scheduler(engine)
    good, bad = scheduler.open(), scheduler.open()
    frames = make_frames(3)
    for queue in (good, bad):
        queue.submit(frames[0])
    scheduler.step()
    engine.bad = bad.session
    for queue in (good, bad):
        queue.submit(frames[1])
    request = scheduler.ask(good, QUESTION)
    report = scheduler.step()
    by_lane = dict(report.events)
    assert by_lane[good].time_s == frames[1].time_s and isinstance(by_lane[bad].error, RuntimeError)
    assert [one for one, _ in report.texts] == [request] and len(report.errors) == 1
    assert bad.counts.failed == 1 and good.counts.taken == 2
    engine.bad = request
    good.submit(frames[2])
    report = scheduler.step()
    assert [one for one, _ in report.broken] == [request] and good.counts.taken == 3
    assert scheduler.step().idle


def test_a_stream_faster_than_the_resizing_is_seen(engine):
    """Pictures that are still being resized give way to fresher ones, but one of them always gets through."""
    hold = threading.Event()
    resize = engine.resize

    def slow(image):
        hold.wait(200.0)
        return resize(image)

    engine.resize = slow
    scheduler = Scheduler(engine, SLO(workers=1))
    queue = scheduler.open(fps=None)
    for frame in make_frames(5, size=112):
        queue.submit(frame)
    assert queue.num_waiting == 2 and not queue.first_ready() and queue.counts.dropped == 3
    hold.set()
    assert scheduler.wait(200.0)
    scheduler.step()
    assert queue.counts.taken == 1
    scheduler.close()


def test_a_picture_that_cannot_be_resized_fails_alone(engine):
    told = []

    def broken(image):
        raise ValueError("no such picture")

    engine.resize = broken
    scheduler = Scheduler(engine, SLO(workers=1))
    queue = scheduler.adopt(engine.open(), settle=lambda queued, outcome: told.append(outcome))
    queue.submit(make_frames(1)[0])
    scheduler.close()
    assert [type(one) for one in told] == [ValueError] and queue.counts.failed == 1 and not queue.is_waiting


def test_a_schedule_with_a_budget_is_kept_and_waits_without_turning(engine):
    clock = Clock()
    scheduler = Scheduler(engine, SLO(workers=0), schedule="round_robin:fps=2", now=clock)
    queues = [scheduler.adopt(engine.open(), None) for _ in range(3)]
    looked, clip = [], [frame.image for frame in make_frames(1)]
    for step in range(40):
        for queue in queues:
            queue.submit(Frame(clip[0], step / 4))
        looked += [queues.index(queue) for queue, _ in scheduler.step().events]
        if step == 1:
            assert scheduler.turns.rest_s(clock()) > 0 and not scheduler._has_work(), "nothing to do until then"
        clock.time += 0.25
    # The first comes at once; then two a second, in turn.
    assert len(looked) == 20 and looked[:6] == [0, 1, 2, 0, 1, 2]
    assert scheduler.stats().frames.dropped > 90
    scheduler.remove(queues[0])
    scheduler.close()


def test_a_faulty_schedule_is_named(engine):
    @dataclasses.dataclass(frozen=True)
    class Greedy(SchedulePolicy):
        def new_state(self):
            return StreamState()

        def choose(self, waiting, room, now_s, state):
            return [0, 0]

    scheduler = Scheduler(engine, SLO(workers=0), schedule=Greedy())
    scheduler.adopt(engine.open(), None).submit(Frame(make_frames(1)[0].image, 0.0))
    with pytest.raises(InputError, match="Greedy chose frames that may not be taken"):
        scheduler.step()
