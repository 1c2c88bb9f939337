"""Stamps of every kind become strictly increasing seconds, and every repair is counted."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from onlooker.video.clock import Clock, ClockRule
from onlooker.video.source import SourceReport

MS = Fraction(1, 1000)


def run(stamps_ms, **settings):
    report = SourceReport()
    clock = Clock(report, **settings)
    return [clock.time_of(stamp, MS) for stamp in stamps_ms], report


def counts(report):
    return report.num_guessed_times, report.num_repaired_times, report.num_clock_jumps


def test_times_count_from_the_declared_start():
    times, report = run([1400, 1440, 1480], origin=Fraction("1.4"))
    assert times == [0.0, 0.04, 0.08]
    assert counts(report) == (0, 0, 0)


def test_a_picture_later_than_the_declared_start_keeps_its_delay():
    assert run([2000, 2040], origin=Fraction(1))[0] == [1.0, 1.04]


def test_a_picture_before_the_declared_start_begins_the_stream():
    assert run([900, 940], origin=Fraction(1))[0] == [0.0, 0.04]


def test_a_first_frame_without_stamp_is_at_zero_and_the_next_one_interval_later():
    times, report = run([None, 500_040, 500_080], interval_s=Fraction(1, 25))
    assert times == [0.0, 0.04, 0.08]
    assert counts(report) == (1, 0, 0)


def test_a_first_frame_without_stamp_before_a_stamp_equal_to_the_origin():
    assert run([None, 1000, 1040], origin=Fraction(1), interval_s=Fraction(1, 25))[0] == [0.0, 0.04, 0.08]


def test_a_missing_stamp_in_the_middle_is_guessed():
    times, report = run([0, 40, None, 120])
    assert times == [0.0, 0.04, 0.08, 0.12]
    assert counts(report) == (1, 0, 0)


def test_no_stamps_at_all_follow_the_declared_interval():
    assert run([None] * 4, interval_s=Fraction(1, 10))[0] == [0.0, 0.1, 0.2, 0.3]


def test_a_repeat_is_moved_on_by_a_millisecond_and_the_clock_stays():
    times, report = run([0, 40, 40, 80])
    assert times == [0.0, 0.04, 0.041, 0.08]
    assert counts(report) == (0, 1, 0)


def test_a_real_gap_is_kept():
    times, report = run([0, 40, 600_000, 600_040])
    assert times == [0.0, 0.04, 600.0, 600.04]
    assert report.num_gaps == 1
    assert counts(report) == (0, 0, 0)


def test_a_restarted_clock_is_joined_on():
    times, report = run([50_000, 50_040, 50_080, 0, 40, 80])
    assert times == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert counts(report) == (0, 0, 1)


def test_a_leap_past_the_declared_end_is_joined_on():
    times, report = run([0, 40, 500_000, 500_040], end_s=3.0)
    assert times == [0.0, 0.04, 0.08, 0.12]
    assert counts(report) == (0, 0, 1)


def test_a_live_rule_joins_shorter_leaps():
    times, report = run([0, 40, 15_000, 15_040], rule=ClockRule(max_gap_s=10.0))
    assert times == [0.0, 0.04, 0.08, 0.12]
    assert counts(report) == (0, 0, 1)


def test_a_stuck_clock_falls_back_to_the_frame_rate():
    times, _ = run([0] * 100, interval_s=Fraction(1, 25))
    assert 3.5 < times[-1] < 4.0


def test_time_base_may_be_missing():
    report = SourceReport()
    assert Clock(report).time_of(5, None) == 0.0
    assert report.num_guessed_times == 1


@given(
    stamps=st.lists(st.one_of(st.none(), st.integers(-(2**62), 2**62), st.integers(0, 5000)), max_size=60),
    origin=st.one_of(st.none(), st.integers(-10, 10).map(Fraction)),
    end_s=st.one_of(st.none(), st.floats(0, 100)),
)
def test_times_strictly_increase_whatever_the_stamps(stamps, origin, end_s):
    report = SourceReport()
    clock = Clock(report, origin=origin, end_s=end_s)
    previous = Fraction(-1)
    for stamp in stamps:
        time_s = clock.time_of(stamp, MS)
        assert time_s >= 0
        exact = clock._last
        assert exact is not None and exact > previous
        previous = exact
    assert report.num_guessed_times == sum(stamp is None for stamp in stamps)


@given(gaps_ms=st.lists(st.integers(1, 9000), min_size=1, max_size=60), start_ms=st.integers(-(10**9), 10**9))
def test_sound_stamps_are_kept_exactly(gaps_ms, start_ms):
    stamps = [start_ms + sum(gaps_ms[:n]) for n in range(len(gaps_ms) + 1)]
    times, report = run(stamps)
    assert times == [(stamp - start_ms) / 1000 for stamp in stamps]
    assert counts(report) == (0, 0, 0)
