"""When a number becomes an event: scripted probabilities through `Threshold`."""

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.core.contracts import Moment
from onlooker.core.errors import InputError
from onlooker.respond import Threshold


def fired(policy: Threshold, trace: Sequence[float | None], step_s: float = 1.0) -> list[float]:
    """The times at which a policy speaks on probabilities `step_s` apart."""
    state = policy.new_state()
    moments = [Moment(number * step_s, 0.5, None, likely) for number, likely in enumerate(trace)]
    return [moment.time_s for moment in moments if policy.decide(moment, state).speaks]


def test_a_step_is_told_once_after_the_hold() -> None:
    assert fired(Threshold(hold_s=2), [0.1] * 3 + [0.9] * 40) == [5.0]
    assert fired(Threshold(hold_s=0), [0.1] * 3 + [0.9] * 40) == [3.0]
    assert fired(Threshold(hold_s=0.5), [0.1] * 3 + [0.9] * 40, step_s=0.25) == [1.25]


def test_a_flickering_condition_is_one_event_and_a_plain_threshold_makes_twenty() -> None:
    flicker = ([0.05, 0.05, 0.95, 0.95] * 20) + [0.05] * 5
    plain = Threshold(clear=0.7, hold_s=0, cooldown_s=0)
    assert len(fired(plain, flicker)) == 20
    for policy in (Threshold(), Threshold(hold_s=0), Threshold(hold_s=5)):
        assert len(fired(policy, flicker)) == 1


def test_every_flicker_faster_than_the_cooldown_is_one_event() -> None:
    rng = random.Random(0)
    for _ in range(50):
        on, off = rng.randint(1, 6), rng.randint(1, 9)
        trace = ([0.9] * on + [0.1] * off) * 30
        assert len(fired(Threshold(hold_s=0, cooldown_s=10), trace)) == 1, (on, off)


def test_one_odd_look_is_no_event() -> None:
    assert fired(Threshold(hold_s=2), ([0.1] * 9 + [0.99]) * 20) == []


def test_a_condition_that_comes_back_after_the_quiet_time_is_told_again() -> None:
    short, long = [0.9] * 5 + [0.1] * 9 + [0.9] * 5, [0.9] * 5 + [0.1] * 12 + [0.9] * 5
    assert fired(Threshold(hold_s=2, cooldown_s=10), short) == [2.0]
    assert fired(Threshold(hold_s=2, cooldown_s=10), long) == [2.0, 19.0]


def test_between_clear_and_threshold_the_condition_stays_as_it_is() -> None:
    policy = Threshold(threshold=0.8, clear=0.4, hold_s=3)
    assert fired(policy, [0.5] * 20) == []
    assert fired(policy, [0.9, 0.5, 0.5, 0.5, 0.5]) == [3.0]
    assert fired(Threshold(threshold=0.8, clear=0.8, hold_s=3), [0.9, 0.5, 0.5, 0.5, 0.5]) == []


def test_a_moment_that_was_not_asked_about_changes_nothing() -> None:
    trace: list[float | None] = [0.9, None, 0.9, None, 0.9, None, None]
    assert fired(Threshold(hold_s=2), trace) == [2.0]
    assert fired(Threshold(hold_s=0), [None] * 30) == []


@given(
    st.lists(st.floats(0, 1), max_size=80),
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.integers(0, 8),
    st.integers(0, 12),
)
def test_events_keep_their_distance_and_come_when_the_probability_is_high(
    trace: list[float], threshold: float, share: float, hold: int, cooldown: int
) -> None:
    policy = Threshold(threshold, threshold * share, hold, cooldown)
    times = fired(policy, trace)
    for time_s in times:
        assert trace[int(time_s)] >= policy.clear_below
        assert max(trace[: int(time_s) + 1]) >= threshold and time_s >= hold
    for before, after in itertools.pairwise(times):
        assert after - before >= max(cooldown, 1) + hold
        assert any(trace[number] < policy.clear_below for number in range(int(before), int(after)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 0.0}, "threshold lies in"),
        ({"threshold": float("nan")}, "threshold lies in"),
        ({"threshold": 0.3, "clear": 0.5}, "clear lies between"),
        ({"clear": -0.1}, "clear lies between"),
        ({"hold_s": -1}, "hold_s is a number of seconds"),
        ({"cooldown_s": float("inf")}, "cooldown_s is a number of seconds"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Threshold(**settings)
