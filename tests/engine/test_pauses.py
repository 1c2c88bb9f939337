"""What stops all streams at once: kept rare, counted, and not taken for what a frame costs."""

import gc
import types
import weakref

import numpy as np
import pytest

from onlooker.core.frame import Frame
from onlooker.engine import SLO, Engine, Scheduler
from onlooker.engine.load import StepCost
from onlooker.engine.pauses import RARELY, Pauses, rarely_collected
from onlooker.engine.preparing import rehearse
from onlooker.engine.request import Request


class Mark:
    """Something that may be looked at without being held."""


def cost_s(frames: int) -> float:
    return 0.010 + 0.0026 * frames


def learnt() -> StepCost:
    cost = StepCost()
    for number in range(60):
        cost.note(6 + number % 11, 1, cost_s(6 + number % 11))
    return cost


@pytest.mark.parametrize("stall_s", [0.3, 1.0, 5.0])
def test_one_stall_does_not_make_all_later_steps_small(stall_s):
    """Its step was a large one, as behind a stall many frames wait; what follows must not be taken to cost as much."""
    cost = learnt()
    cost.note(28, 1, stall_s)
    assert cost.stalls == 1 and cost.frames_within(0.25, 1, 32) == 32
    for _ in range(20):
        cost.note(32, 1, cost_s(32))
    assert cost.frame_s == pytest.approx(0.0026, rel=0.1) and cost.stalls == 1


def test_steps_that_stay_slow_count():
    cost = learnt()
    for _ in range(120):
        cost.note(16, 1, 10 * cost_s(16))
    assert cost.stalls == 1 and cost.expected_s(16, 1) == pytest.approx(10 * cost_s(16), rel=0.2)
    assert cost.frames_within(0.25, 1, 32) < 16


def test_every_second_step_long_is_no_stall_each_time():
    """Then steps are what they are on average, soon."""
    cost = learnt()
    for number in range(200):
        cost.note(16, 1, cost_s(16) * (8 if number % 4 < 2 else 1))
    assert cost.expected_s(16, 1) > 2 * cost_s(16)


def test_what_would_cost_less_than_nothing_is_left_out_of_the_fit():
    """Not only cut off at zero: the others were fitted beside it, and would tell of twice the time."""
    cost = StepCost()
    for number in range(200):
        frames = 4 + number % 9
        cost.note(frames, 1, 0.004 * frames - 0.012)  # steeper than any line through nothing
    assert cost.base_s == 0 and cost.question_s == 0
    assert cost.expected_s(8, 1) == pytest.approx(0.020, rel=0.15)


def test_garbage_is_looked_for_among_what_came_since():
    before = gc.get_threshold()  # a server of another test may be at work
    gc.set_threshold(700, 10, 10)
    with rarely_collected():
        with rarely_collected():
            assert gc.get_threshold() == RARELY
        assert gc.get_threshold() == RARELY
        assert gc.get_freeze_count() > len(gc.get_objects())
        loop: list = []
        loop.append(loop)
        mark = Mark()
        loop.append(mark)
        gone = weakref.ref(mark)
        del loop, mark
        gc.collect()
        assert gone() is None, "what came since is still found"
    assert gc.get_threshold() == (700, 10, 10) and gc.get_freeze_count() == 0
    gc.set_threshold(*before)


def test_pauses_are_counted_while_they_are_watched():
    import triton

    runtime = triton.knobs.runtime
    heard, before = [], runtime.jit_post_compile_hook
    runtime.jit_post_compile_hook = lambda **about: heard.append(about["fn"].name)
    try:
        with Pauses() as pauses:
            gc.collect()
            runtime.jit_post_compile_hook(fn=types.SimpleNamespace(name="attend_rows"), key="")
            paused = pauses.take()
            assert paused.collected_s > 0 and paused.compiled == ["attend_rows"]
            assert not pauses.take().compiled, "taken once"
        gc.collect()
        assert pauses.take().collected_s == 0.0
        runtime.jit_post_compile_hook(fn=types.SimpleNamespace(name="other"), key="")
        assert heard == ["attend_rows", "other"], "who listened before still does"
    finally:
        runtime.jit_post_compile_hook = before
    paused.collected_s = 0.314
    paused.compiled = ["a", "b", "a"]
    assert paused.told == "0.31 s of looking for garbage; compiled a, b"


@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_a_closed_stream_is_freed_at_once(tiny_model, passes):
    """So a server may look for garbage as rarely as it likes. Nor do passes hold what they read last: of each size
    there are buffers, and the streams of the last pass of each may be gone for long."""
    engine = Engine(tiny_model, memory="sliding_window:window_tokens=40", kv="device=int4", passes=passes)
    scheduler = Scheduler(engine, SLO(workers=0))
    queue = scheduler.open()
    for number in range(4):
        queue.submit(Frame(np.full((56, 56, 3), number * 50, np.uint8), float(number)))
        assert not scheduler.step().idle
    request = scheduler.ask(queue, "what?")
    while not request.done:
        scheduler.step()
    request.answer()
    gone = [weakref.ref(queue.session), weakref.ref(queue.session.store), weakref.ref(queue)]
    gone += [weakref.ref(coded) for coded in queue.session.store._window.coded.values()]
    assert len(gone) > 4
    gc.collect()
    gc.disable()
    try:
        queue.close()
        del queue, request
        assert [one() for one in gone] == [None] * len(gone)
    finally:
        gc.enable()
        scheduler.close()


@pytest.mark.parametrize("memory", ["sliding_window:window_tokens=40", "rekv", "full", "streaming_vlm", "late_drop"])
def test_a_rehearsal_leaves_no_mark(tiny_model, memory):
    engine, told = Engine(tiny_model, memory=memory, passes="packed"), []
    engine.prepare(most_frames=3, most_tokens=64, picture=(56, 56))
    gc.collect()
    gc.disable()
    try:
        rehearse(engine, 3, (56, 56, 3), told.append)
    finally:
        gc.enable()
    assert len(told) == 2 and "1 to 3 frames" in told[-1]
    assert not engine.sessions
    gone = [one for one in gc.get_objects() if type(one) is Request and one.session.belongs_to(engine)]
    assert not gone, "a question that is left in flight holds what it sees"
    with engine.open() as session:
        assert session.stats().frames == 0 and session.push(Frame(np.zeros((56, 56, 3), np.uint8), 0.0)).tokens_kept


def test_a_rehearsal_ends_where_there_is_no_room(tiny_model):
    engine, told = Engine(tiny_model, memory="full", device_budget_bytes=60_000), []
    rehearse(engine, 2, (56, 56, 3), told.append)
    assert not engine.sessions and "1 to 2 frames" not in " ".join(told)
