"""Frames pushed from any thread come out in order, within bounds, and every loss is counted."""

import threading
import time

import numpy as np
import pytest

from onlooker.core.errors import CapacityError, InputError, SourceError
from onlooker.video import PushSource

IMAGE = np.zeros((4, 6, 3), np.uint8)


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_frames_come_out_in_order_with_their_times():
    with PushSource() as source:
        for n in range(5):
            source.push(IMAGE + n, n / 10, wall_time_s=1000.0 + n)
        source.end()
        frames = list(source)
    assert [frame.time_s for frame in frames] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[2].wall_time_s == 1002.0
    assert source.info.live and source.info.size == (4, 6)
    assert (source.report.num_decoded, source.report.num_delivered) == (5, 5)


def test_the_caller_may_reuse_its_buffer():
    source, buffer = PushSource(), IMAGE.copy()
    source.push(buffer, 0.0)
    buffer[:] = 9
    assert next(source).image.max() == 0


def test_without_times_the_first_push_is_zero():
    ticks = iter([100.0, 100.25, 101.0])
    source = PushSource(now=lambda: next(ticks))
    for _ in range(3):
        source.push(IMAGE)
    source.end()
    assert [frame.time_s for frame in source] == [0.0, 0.25, 1.0]


def test_block_waits_for_room():
    source = PushSource(2)
    producer = in_thread(lambda: [source.push(IMAGE, n / 10) for n in range(20)] and source.end())
    times = []
    for frame in source:
        time.sleep(0.002)
        assert len(source._queue) <= 2
        times.append(frame.time_s)
    producer.join()
    assert times == [n / 10 for n in range(20)]
    assert source.report.num_dropped == 0


def test_block_gives_up_after_the_timeout():
    source = PushSource(1)
    source.push(IMAGE, 0.0)
    with pytest.raises(CapacityError, match=r"waited 0\.05 s"):
        source.push(IMAGE, 1.0, timeout_s=0.05)
    next(source)
    source.push(IMAGE, 1.0, timeout_s=0.05)


def test_drop_oldest_keeps_the_freshest_and_counts():
    source = PushSource(3, "drop_oldest")
    for n in range(10):
        source.push(IMAGE, float(n))
    source.end()
    assert [frame.time_s for frame in source] == [7.0, 8.0, 9.0]
    report = source.report
    assert (report.num_decoded, report.num_delivered, report.num_dropped) == (10, 3, 7)


def test_refuse_raises_and_keeps_what_waits():
    source = PushSource(1, "refuse")
    source.push(IMAGE, 0.0)
    with pytest.raises(CapacityError, match="the queue is full"):
        source.push(IMAGE, 1.0)
    assert next(source).time_s == 0.0
    source.push(IMAGE, 1.0)


def test_time_may_stand_but_not_run_backwards():
    source = PushSource()
    source.push(IMAGE, 2.0)
    source.push(IMAGE, 2.0)
    with pytest.raises(InputError, match="time runs backwards"):
        source.push(IMAGE, 1.0)
    source.push(IMAGE, 3.0)
    source.end()
    assert [frame.time_s for frame in source] == [2.0, 2.0, 3.0]


def test_sampling_skips_without_taking_room():
    source = PushSource(3, "refuse", fps=1.0)
    for n in range(30):
        source.push(IMAGE, n / 10)
    source.end()
    assert [frame.time_s for frame in source] == [0.0, 1.0, 2.0]
    assert source.report.num_skipped == 27


@pytest.mark.parametrize(
    "image,time_s",
    [
        (IMAGE.astype(np.float32), 0.0),
        (IMAGE[..., :1], 0.0),
        (IMAGE[:0], 0.0),
        ("picture", 0.0),
        (None, None),
        (IMAGE, -1.0),
        (IMAGE, float("nan")),
        (IMAGE, float("inf")),
        (IMAGE, "1"),
        (IMAGE, True),
    ],
)
def test_bad_frames_are_refused_and_leave_no_trace(image, time_s):
    source = PushSource()
    with pytest.raises(InputError):
        source.push(image, time_s)
    source.push(IMAGE, 0.0)
    source.end()
    assert len(list(source)) == 1


def test_timed_and_untimed_frames_do_not_mix():
    source = PushSource()
    source.push(IMAGE, 0.0)
    with pytest.raises(InputError, match="some without"):
        source.push(IMAGE)


def test_pushing_after_the_end_is_refused():
    source = PushSource()
    source.end()
    source.end()
    assert source.has_ended
    with pytest.raises(InputError, match=r"end\(\) was called"):
        source.push(IMAGE, 0.0)
    assert list(source) == []


def test_end_with_damage_is_reported():
    source = PushSource()
    source.push(IMAGE, 0.0)
    source.end(damage="the camera was unplugged")
    assert len(list(source)) == 1
    assert source.report.damage == ["the camera was unplugged"]


def test_closing_wakes_a_waiting_producer_and_counts_what_waited():
    source, errors = PushSource(1), []
    source.push(IMAGE, 0.0)

    def produce():
        try:
            source.push(IMAGE, 1.0)
        except InputError as error:
            errors.append(str(error))

    producer = in_thread(produce)
    time.sleep(0.05)
    source.close()
    producer.join(200)
    assert not producer.is_alive() and "the reading side was closed" in errors[0]
    assert source.report.num_dropped == 1
    assert list(source) == []


def test_closing_wakes_a_waiting_reader():
    source, frames = PushSource(), []
    reader = in_thread(lambda: frames.extend(source))
    time.sleep(0.05)
    source.close()
    reader.join(200)
    assert not reader.is_alive() and frames == []


def test_reading_gives_up_after_the_timeout_and_may_go_on():
    source = PushSource(timeout_s=0.05)
    with pytest.raises(SourceError, match=r"no frame arrived for 0\.05 s"):
        next(source)
    source.push(IMAGE, 0.0)
    assert next(source).time_s == 0.0


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_many_producers_without_times_stay_in_order_and_add_up(policy):
    source = PushSource(4, policy)
    producers = [in_thread(lambda: [source.push(IMAGE) for _ in range(50)]) for _ in range(6)]
    in_thread(lambda: [thread.join() for thread in producers] and source.end())
    times = [frame.time_s for frame in source]
    assert times == sorted(times)
    report = source.report
    assert report.num_decoded == 300
    assert report.num_delivered == len(times) == 300 - report.num_dropped


@pytest.mark.parametrize("settings", [{"capacity": 0}, {"capacity": 1.5}, {"policy": "newest"}, {"timeout_s": -1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        PushSource(**settings)
