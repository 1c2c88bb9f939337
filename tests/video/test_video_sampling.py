"""Sampling is by time: the first frame at or after each due time, none twice, for any frame times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.core.errors import InputError
from onlooker.video import FrameSampler


def by_the_definition(times: list[float], fps: float, start_s: float, slack_s: float) -> list[int]:
    taken: list[int] = []
    k = 0
    while times and start_s + k / fps <= times[-1] + slack_s:
        first = next(i for i, time_s in enumerate(times) if time_s + slack_s >= start_s + k / fps)
        if first not in taken:
            taken.append(first)
        k += 1
    return taken


def taken_by(sampler: FrameSampler, times: list[float]) -> list[int]:
    return [index for index, time_s in enumerate(times) if sampler.wants(time_s)]


@given(
    gaps_ms=st.lists(st.one_of(st.integers(1, 60), st.integers(1, 4000)), max_size=60),
    fps=st.sampled_from([0.3, 0.5, 1.0, 1, 2.0, 3.0, 7.0, 10.0, 23.976, 25.0, 29.97, 30.0, 60.0, 100.0]),
    start_s=st.sampled_from([0.0, 0.1, 0.7, 2.5, 1 / 3]),
)
def test_taken_frames_are_the_first_at_or_after_each_due_time(gaps_ms, fps, start_s):
    times = [sum(gaps_ms[:n]) / 1000 for n in range(len(gaps_ms) + 1)]
    sampler = FrameSampler(fps, start_s)
    assert taken_by(sampler, times) == by_the_definition(times, fps, start_s, sampler.slack_s)


@given(
    times=st.lists(st.floats(0, 1e15), min_size=1, max_size=30).map(sorted),
    fps=st.floats(1e-6, 1e6),
)
def test_any_times_are_answered_and_spaced(times, fps):
    sampler = FrameSampler(fps)
    taken = [times[index] for index in taken_by(sampler, times)]
    assert len(taken) <= max(times) * fps + 2


@pytest.mark.parametrize("rate", [24, 25, 30, 50, 60])
def test_sampling_at_the_native_rate_keeps_every_frame_of_a_millisecond_container(rate):
    times = [round(n / rate, 3) for n in range(500)]
    assert len(taken_by(FrameSampler(float(rate)), times)) == 500


@pytest.mark.parametrize("num_frames,rate", [(3000, 24000 / 1001), (3000, 30000 / 1001)])
def test_one_per_second_of_a_broadcast_rate_is_one_per_second(num_frames, rate):
    times = [n / rate for n in range(num_frames)]
    taken = [times[i] for i in taken_by(FrameSampler(1.0), times)]
    assert all(k <= time_s + 0.001 and time_s < k + 1 / rate for k, time_s in enumerate(taken))
    assert len(taken) == int(times[-1]) + 1


def test_a_gap_gives_one_frame_and_no_catching_up():
    times = [0.0, 0.5, 1.0, 9.25, 9.5, 10.0]
    assert [times[i] for i in taken_by(FrameSampler(1.0), times)] == [0.0, 1.0, 9.25, 10.0]


def test_every_frame_from_the_start_on():
    assert taken_by(FrameSampler(None, 0.5), [0.0, 0.4, 0.5, 0.51]) == [2, 3]


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_bad_rate_is_refused(fps):
    with pytest.raises(InputError, match="fps"):
        FrameSampler(fps)
