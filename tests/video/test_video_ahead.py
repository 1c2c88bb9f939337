"""Frames read ahead: their order, an end, an error, a bound, and nothing left behind."""

import threading

import numpy as np
import pytest
from video_clips import write

from onlooker.core.errors import DamagedSource, InputError
from onlooker.core.frame import Frame
from onlooker.video import Ahead, changed, open_video

WAIT_S = 200.0


def frames(count: int, read: list[int], gate: threading.Event | None = None, at: int = 10**9):
    for number in range(count):
        if gate is not None and number == at:
            assert gate.wait(WAIT_S)
        read.append(number)
        yield Frame(np.zeros((2, 2, 3), np.uint8), float(number))


def test_the_same_frames_in_the_same_order(tmp_path):
    path = write(tmp_path / "clip.mp4")
    with open_video(path, fps=None) as video:
        straight = [(frame.time_s, frame.image.tobytes()) for frame in video]
    with open_video(path, fps=None) as video, Ahead(iter(video)) as ahead:
        assert [(frame.time_s, frame.image.tobytes()) for frame in ahead] == straight
    assert len(straight) > 8


def test_no_more_is_read_than_was_allowed_and_closing_ends_the_thread():
    read: list[int] = []
    before = set(threading.enumerate())
    with Ahead(frames(100, read), most=3) as ahead:
        assert ahead.next_within(WAIT_S).time_s == 0.0
        for _ in range(20_000):
            if len(read) == 4:
                break
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)  # for one that should not come
        assert len(read) == 4, "one taken, three waiting"
    assert set(threading.enumerate()) <= before
    with pytest.raises(StopIteration):
        ahead.next_within(WAIT_S)


def test_a_source_that_stalls_does_not_hold_up_who_looks():
    gate = threading.Event()
    with Ahead(frames(3, [], gate, at=1)) as ahead:
        assert ahead.next_within(WAIT_S).time_s == 0.0
        assert ahead.next_within(0.05) is None
        gate.set()
        assert [frame.time_s for frame in ahead] == [1.0, 2.0]


def test_an_error_comes_after_the_frames_before_it():
    def broken():
        yield from frames(2, [])
        raise DamagedSource("it broke off")

    with Ahead(broken()) as ahead:
        assert [next(ahead).time_s, next(ahead).time_s] == [0.0, 1.0]
        with pytest.raises(DamagedSource, match="broke off"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


def test_the_bound_is_checked():
    with pytest.raises(InputError, match="read ahead"):
        Ahead(iter(()), most=0)


def test_frames_are_changed_in_their_order_and_an_error_comes_last():
    """By several threads, the first of which are the slowest; the end may be an error of the source's."""
    later = [threading.Event() for _ in range(8)]

    def change(frame: Frame) -> Frame:
        number = int(frame.time_s)
        if number % 2 == 0:
            assert later[number + 1].wait(WAIT_S), "the next one does not wait for this one"
        later[number].set()
        return Frame(frame.image + 1, frame.time_s)

    def broken():
        yield from frames(8, [])
        raise DamagedSource("it ends here")

    told = changed(broken(), change, workers=2)
    got = [next(told) for _ in range(8)]
    assert [frame.time_s for frame in got] == [float(n) for n in range(8)]
    assert all((frame.image == 1).all() for frame in got)
    with pytest.raises(DamagedSource):
        next(told)
    with pytest.raises(InputError, match="worker"):
        next(changed(iter(()), change, workers=0))


def test_no_more_frames_are_changed_than_are_taken_soon_and_what_went_wrong_is_told():
    read: list[int] = []
    told = changed(frames(100, read), lambda frame: frame, workers=2)
    assert next(told).time_s == 0.0
    assert len(read) == 4, "twice as many as workers"
    told.close()
    fails = changed(frames(3, []), lambda frame: 1 / frame.time_s, workers=1)
    with pytest.raises(ZeroDivisionError):
        list(fails)
