"""Many streams on one engine: freshest frames, deadlines, refusals, and the ladder down and up."""

import threading

import pytest
from moving_pictures import make_frames

from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine
from onlooker.engine.load import Recent, Share, StepCost
from onlooker.engine.scheduler import Busy, Promises, Rung, Scheduler, default_ladder

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


def make_scheduler(engine, clock=None, **promises) -> Scheduler:
    return Scheduler(engine, Promises(**{"workers": 0} | promises), now=clock or Clock())


def slow_down(scheduler: Scheduler, frame_s: float, base_s: float = 0.0) -> None:
    """As if many steps had taken so long."""
    scheduler.cost = StepCost()
    for _ in range(100):
        for frames in (1, 4, 9):
            scheduler.cost.note(frames, 0, base_s + frame_s * frames)


def test_steps_take_frames_and_questions_of_all(engine):
    scheduler = make_scheduler(engine)
    lanes = [scheduler.open() for _ in range(3)]
    assert scheduler.step().idle and not scheduler.wait(0.0)
    for number, lane in enumerate(lanes):
        for frame in make_frames(4, seed=number):
            assert lane.offer(frame)
            scheduler.step()
    assert [lane.counts.taken for lane in lanes] == [4, 4, 4]
    asking = scheduler.ask(lanes[0], QUESTION, decoding=Decoding(max_new_tokens=4))
    lanes[1].offer(Frame(make_frames(1)[0].image, 9.0))
    report = scheduler.step()
    assert [lane for lane, _ in report.events] == [lanes[1]] and report.texts[0][0] is asking
    while not asking.done:
        scheduler.step()
    alone = engine.open()
    for frame in make_frames(4, seed=0):
        alone.push(frame)
    assert asking.answer().text == alone.ask(QUESTION, max_new_tokens=4).text
    stats = scheduler.stats()
    assert stats.frames.taken == 13 and stats.questions == 0 and stats.first_token_p95_s is not None


def test_the_freshest_frame_wins_and_the_other_is_counted(engine):
    scheduler = make_scheduler(engine)
    lane = scheduler.open()
    first, second, third = make_frames(3)
    lane.offer(first)
    lane.offer(second)
    assert lane.counts.dropped == 1
    (lane_and_event,) = scheduler.step().events
    assert lane_and_event[1].time_s == second.time_s
    with pytest.raises(InputError, match="order"):
        lane.offer(second)
    lane.offer(third)
    lane.close()
    lane.close()
    assert scheduler.stats().frames.dropped == 2 and scheduler.stats().streams == 0
    with pytest.raises(SessionClosed):
        lane.offer(Frame(third.image, 99.0))


def test_oldest_first_and_lag_is_from_the_offer(engine):
    clock = Clock()
    scheduler = make_scheduler(engine, clock, most_frames=2, frame_lag_s=1.0)
    lanes = [scheduler.open() for _ in range(3)]
    for time_s, lane in ((0.0, lanes[2]), (0.5, lanes[0]), (0.6, lanes[1])):
        clock.time = time_s
        lane.offer(make_frames(1)[0])
    clock.time = 1.2
    report = scheduler.step()
    assert [lane for lane, _ in report.events] == [lanes[2], lanes[0]]
    assert report.lags_s[0] >= 1.2 and report.lags_s[1] >= 0.7
    assert lanes[2].counts.late == 1
    assert [lane for lane, _ in scheduler.step().events] == [lanes[1]]


def test_a_frame_rate_is_kept(engine):
    lane = make_scheduler(engine).open(fps=2.0)
    taken = [time_s / 30 for time_s in range(90) if lane.offer(Frame(make_frames(1)[0].image, time_s / 30))]
    assert len(taken) in (6, 7) and lane.counts.thinned == 90 - len(taken)
    assert lane.offer(Frame(make_frames(1)[0].image, 30.0)) and not lane.offer(Frame(make_frames(1)[0].image, 30.1))


def test_steps_are_short_enough_for_a_question(engine):
    scheduler = make_scheduler(engine, most_frames=8, first_token_s=0.5)
    slow_down(scheduler, frame_s=0.1)
    lanes = [scheduler.adopt(engine.open()) for _ in range(4)]
    for lane in lanes:
        lane.offer(make_frames(1)[0])
    assert len(scheduler.step().events) == 2, "two frames of 100 ms fit into half of 500 ms"


def test_streams_and_questions_are_refused_before_promises_break(engine):
    scheduler = make_scheduler(engine, most_questions=1)
    lane = scheduler.open()
    lane.offer(make_frames(1)[0])
    scheduler.step()
    scheduler.ask(lane, QUESTION)
    with pytest.raises(Busy, match="1 in flight") as refusal:
        scheduler.ask(lane, QUESTION)
    assert refusal.value.retry_s >= 1
    slow_down(scheduler, frame_s=0.2)
    for _ in range(3):
        scheduler.open()
    with pytest.raises(Busy, match="of the time would be promised") as refusal:
        scheduler.open()
    assert refusal.value.retry_s == 15.0
    assert scheduler.stats().refused == 2
    lane.close()
    other = scheduler.adopt(engine.open())
    other.offer(make_frames(1)[0])
    scheduler.step()
    slow_down(scheduler, frame_s=0.01, base_s=0.6)
    scheduler.promises = Promises(workers=0, most_questions=2)
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
    names = [rung.name for rung in scheduler.ladder]
    assert names == [
        "everything",
        "half the frames",
        "half the frames, less of the compressor",
        "half the frames, less of the compressor, less of the encoder",
    ]
    lane = scheduler.adopt(engine.open(), fps=2.0)
    slow_down(scheduler, frame_s=0.9)
    seen, image = [], make_frames(1)[0].image

    def watch(seconds: int, fps: float = 2.0) -> None:
        """Offer frames at a rate, and pretend that steps cost what was said."""
        for _ in range(seconds):
            for half in range(2):
                clock.time += 0.5
                if half < fps:
                    lane.offer(Frame(image, clock.time))
            scheduler._settle()
            seen.append(scheduler.stats().level)

    watch(20)
    assert seen[0] == 0 and seen[-1] == 1, "half the frames are 0.9 of the time: enough"
    with pytest.raises(Busy, match="half the frames"):
        scheduler.open(0.01)
    assert 7 <= lane.counts.shed <= 12, "every second frame since then"
    slow_down(scheduler, frame_s=3.0)
    watch(20)
    assert scheduler.stats().level == 3
    assert engine.compressor.keep == 1 and engine.encoder.interval == 6
    ((_, event),) = scheduler.step().events
    assert event.tokens_kept == 1
    slow_down(scheduler, frame_s=3.0)
    watch(200, fps=0)
    assert scheduler.stats().rung == "everything", "who offers nothing asks for nothing"
    assert engine.compressor.keep == 2 and engine.encoder.interval == 3
    scheduler.close()


def test_a_ladder_has_what_the_methods_have(tiny_model):
    plain = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    assert [rung.name for rung in default_ladder(plain)] == ["everything", "half the frames"]
    with pytest.raises(InputError, match="at least one rung"):
        Scheduler(plain, Promises(workers=0), ladder=())
    assert Scheduler(plain, Promises(workers=0), ladder=[Rung("all")]).rung.name == "all"


def test_pictures_are_resized_ahead_in_threads(engine):
    small, large = engine.open(), make_frames(3, size=112)
    for frame in large:
        small.push(frame)
    scheduler = Scheduler(engine, Promises(workers=2))
    lane = scheduler.open()
    for frame in large:
        feeder = threading.Thread(target=lane.offer, args=(frame,))
        feeder.start()
        assert scheduler.wait(10.0)
        feeder.join()
        scheduler.step()
    assert lane.counts.taken == 3
    answers = {session.ask(QUESTION, max_new_tokens=4).text for session in (small, lane.session)}
    assert len(answers) == 1
    scheduler.close()


def test_promises_are_checked():
    for wrong in ({"frame_lag_s": 0}, {"most_frames": 0}, {"most_load": 0.0}, {"step_s": 0}, {"workers": -1}):
        with pytest.raises(InputError):
            Promises(**wrong)


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


def test_a_fast_stream_does_not_lose_its_turn_by_offering(engine):
    clock = Clock()
    scheduler = make_scheduler(engine, clock, most_frames=1)
    fast, slow = scheduler.open(fps=None), scheduler.open(fps=None)
    for frame in make_frames(3):
        fast.offer(frame)
        clock.time += 0.1
    slow.offer(make_frames(1)[0])
    report = scheduler.step()
    assert [lane for lane, _ in report.events] == [fast] and report.offers[0].arrived_s == pytest.approx(0.2)


def test_a_backlog_keeps_its_order_and_is_not_shed(engine):
    told = []
    scheduler = make_scheduler(engine)
    scheduler.ladder = (Rung("half the frames", 0.5),)
    lane = scheduler.adopt(engine.open(), None, backlog=2, settle=lambda offer, outcome: told.append((offer, outcome)))
    first, second, third = make_frames(3)
    offers = [lane.offer(first, note="first"), lane.offer(second)]
    with pytest.raises(Busy, match="2 frames wait"):
        lane.offer(third)
    assert not lane.wait_for_room(0.0)
    scheduler.step()
    assert lane.wait_for_room(0.0) and lane.offer(third), "a refused frame may come again"
    scheduler.step()
    assert [offer for offer, _ in told] == offers and offers[0].note == "first"
    assert [outcome.event.time_s for _, outcome in told] == [first.time_s, second.time_s]
    lane.close()
    assert isinstance(told[-1][1], SessionClosed) and lane.counts.dropped == 1


def test_who_fails_alone_fails_alone(tiny_model):
    class Fragile(Engine):
        def _step(self, arrivals, askings):
            if any(session is self.bad for session, _ in arrivals) or any(one is self.bad for one in askings):
                raise RuntimeError("this one cannot be stepped")
            return super()._step(arrivals, askings)

    engine = Fragile(tiny_model, memory="full")
    engine.bad = None
    scheduler = make_scheduler(engine)
    good, bad = scheduler.open(), scheduler.open()
    frames = make_frames(3)
    for lane in (good, bad):
        lane.offer(frames[0])
    scheduler.step()
    engine.bad = bad.session
    for lane in (good, bad):
        lane.offer(frames[1])
    asking = scheduler.ask(good, QUESTION)
    report = scheduler.step()
    by_lane = dict(report.events)
    assert by_lane[good].time_s == frames[1].time_s and isinstance(by_lane[bad].error, RuntimeError)
    assert [one for one, _ in report.texts] == [asking] and len(report.errors) == 1
    assert bad.counts.failed == 1 and good.counts.taken == 2
    engine.bad = asking
    good.offer(frames[2])
    report = scheduler.step()
    assert [one for one, _ in report.broken] == [asking] and good.counts.taken == 3
    assert scheduler.step().idle


def test_a_stream_faster_than_the_resizing_is_seen(engine):
    """Pictures that are still being resized give way to fresher ones, but one of them always gets through."""
    hold = threading.Event()
    resize = engine.resize

    def slow(image):
        hold.wait(10.0)
        return resize(image)

    engine.resize = slow
    scheduler = Scheduler(engine, Promises(workers=1))
    lane = scheduler.open(fps=None)
    for frame in make_frames(5, size=112):
        lane.offer(frame)
    assert lane.num_waiting == 2 and lane.waiting_since() is None and lane.counts.dropped == 3
    hold.set()
    assert scheduler.wait(10.0)
    scheduler.step()
    assert lane.counts.taken == 1
    scheduler.close()


def test_a_picture_that_cannot_be_resized_fails_alone(engine):
    told = []

    def broken(image):
        raise ValueError("no such picture")

    engine.resize = broken
    scheduler = Scheduler(engine, Promises(workers=1))
    lane = scheduler.adopt(engine.open(), settle=lambda offer, outcome: told.append(outcome))
    lane.offer(make_frames(1)[0])
    scheduler.close()
    assert [type(one) for one in told] == [ValueError] and lane.counts.failed == 1 and not lane.is_waiting
