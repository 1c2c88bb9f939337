"""The session clock: outages are as long as they were, nothing runs back, nothing old passes for new."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as some

from onlooker.video.live_clock import MAX_JUMP_S, SETTLE_S, LiveClock
from onlooker.video.source import SourceReport

MS = Fraction(1, 1000)


class Session:
    """A clock whose pictures arrive when the test says."""

    def __init__(self, **settings) -> None:
        self.now_s = 1000.0
        self.report = SourceReport()
        self.settings = settings
        self.connect()

    def connect(self, **settings) -> None:
        self.clock = LiveClock(self.report, now=lambda: self.now_s, **self.settings, **settings)

    def see(self, at_s: float, stamp_s: float | None):
        self.now_s = 1000.0 + at_s
        return self.clock.see(None if stamp_s is None else round(stamp_s * 1000), MS)


def test_times_follow_the_stamps_and_not_the_jitter_of_arrivals():
    session = Session()
    assert session.see(0.0, 50.0).time_s == 0.0
    late = session.see(1.08, 51.0)
    assert late.time_s == pytest.approx(1.0, abs=0.01) and late.lag_s == pytest.approx(0.08, abs=0.01)
    assert session.see(2.02, 52.0).time_s == pytest.approx(2.0, abs=0.01)


def test_a_picture_from_the_future_moves_the_clock_back():
    session = Session()
    session.see(0.5, 10.0)
    moment = session.see(0.6, 10.4)  # the first was 0.3 s late
    assert moment.time_s == pytest.approx(0.1) and moment.lag_s == 0
    assert session.see(1.1, 10.9).time_s == pytest.approx(0.6)


def test_a_played_out_picture_waits_for_its_moment_instead():
    session = Session(is_paced=True)
    session.see(0.0, 10.0)
    moment = session.see(0.01, 12.0)
    assert moment.time_s == pytest.approx(2.0) and moment.ahead_s == pytest.approx(1.99)


@pytest.mark.parametrize("leap_s", [-7200.0, -1.5, MAX_JUMP_S + 1, 36000.0])
def test_a_leap_of_the_stamps_is_no_leap_of_the_session(leap_s):
    session = Session()
    for tick in range(10):
        session.see(tick / 10, 8000 + tick / 10)
    after = session.see(1.0, 8001 + leap_s)
    assert after.time_s == pytest.approx(1.0) and session.report.num_clock_jumps == 1
    assert session.see(1.1, 8001.1 + leap_s).time_s == pytest.approx(1.1)


def test_a_backlog_is_late_until_it_is_worked_off():
    session = Session(max_lag_s=2.5)
    session.see(0.0, 0.0)
    session.see(1.0, 1.0)
    backlog = [session.see(7.0 + stamp / 1000, float(stamp)) for stamp in range(2, 8)]
    assert [moment.is_late for moment in backlog] == [True, True, True, False, False, False]
    assert backlog[-1].time_s == pytest.approx(7.0, abs=0.05) and session.report.num_clock_jumps == 0


def test_after_a_pause_of_the_senders_clock_now_is_now_again():
    session = Session(max_lag_s=3.0)
    session.see(0.0, 0.0)
    first = session.see(6.0, 0.1)  # six seconds later, and the stamps say a tenth of a second
    assert first.is_late
    later = session.see(6.0 + SETTLE_S, 0.1 + SETTLE_S)
    assert not later.is_late and later.time_s == pytest.approx(6.0 + SETTLE_S)
    assert session.report.num_clock_jumps == 1


def test_a_new_connection_goes_on_where_the_time_of_day_is():
    session = Session()
    session.see(0.0, 90.0)
    last = session.see(2.0, 92.0)
    session.connect(began_s=session.clock.began_s, last_s=last.time_s)
    assert session.see(32.0, 0.0).time_s == pytest.approx(32.0)


def test_clocks_that_run_apart_are_brought_together_again():
    session = Session()
    for second in range(3600):
        moment = session.see(float(second), second * 0.9995)
    assert moment.lag_s < 0.01 and session.report.num_clock_jumps == 0


def test_a_picture_without_a_stamp_was_taken_when_it_came():
    session = Session()
    assert session.see(0.0, None).time_s == 0.0
    assert session.see(0.2, 77.0).time_s == pytest.approx(0.2)
    assert session.see(0.3, None).time_s == pytest.approx(0.3)
    assert session.report.num_guessed_times == 2


@given(some.lists(some.tuples(some.floats(0, 20), some.none() | some.floats(-1e5, 1e5)), max_size=60))
def test_whatever_stamps_do_times_increase_and_none_is_from_the_future(steps):
    session, at_s, last = Session(), 0.0, -1.0
    for index, (waited_s, stamp_s) in enumerate(steps):
        at_s += waited_s if index else 0.0
        moment = session.see(at_s, stamp_s)
        if not moment.is_late:
            assert moment.time_s > last
            # Each picture that arrives in the very same moment is set a millisecond after the one before.
            assert moment.time_s <= at_s + 0.001 * len(steps) + 1e-6
            assert moment.lag_s <= 3.0 and moment.time_s + moment.lag_s >= at_s - 1e-6
            last = moment.time_s
