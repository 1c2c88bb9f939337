"""Whose frame is next: in turn, by change, within a budget, and nobody for ever last."""

from collections import Counter

import numpy as np
import pytest

from onlooker.core.contracts import SchedulePolicy, Waiting
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.schedule import ChangeFirst, OldestFirst, RoundRobin


def waiting(stream: int, since_s: float = 0.0, level: int = 50) -> Waiting:
    return Waiting(stream, since_s, Frame(np.full((24, 24, 3), level, np.uint8), since_s))


def looks(policy: SchedulePolicy, streams: int, seconds: int, level=lambda stream, n: 50) -> Counter:
    """How often each stream was looked at, when all have a new frame four times a second."""
    state, since, seen = policy.new_state(), dict.fromkeys(range(streams), 0.0), Counter()
    for n in range(4 * seconds):
        now = n / 4
        offered = [waiting(stream, since[stream], level(stream, n)) for stream in range(streams)]
        for place in policy.choose(offered, 3, now, state):
            seen[place] += 1
            since[place] = now
    return seen


def test_the_oldest_comes_first_and_ties_go_by_number() -> None:
    policy, offered = OldestFirst(), [waiting(4, 3.0), waiting(2, 1.0), waiting(3, 1.0)]
    assert policy.choose(offered, 2, 5.0, policy.new_state()) == [1, 2]
    assert policy.most_fps is None and policy.rest_s(0.0, policy.new_state()) == 0.0


def test_round_robin_goes_on_behind_the_last() -> None:
    policy = RoundRobin()
    state, offered = policy.new_state(), [waiting(n, 10.0 - n) for n in range(5)]
    turns = [[offered[place].stream for place in policy.choose(offered, 2, 0.0, state)] for _ in range(4)]
    assert turns == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert policy.choose([waiting(1), waiting(7)], 1, 0.0, state) == [1]


@pytest.mark.parametrize("policy", [OldestFirst(fps=2.0), RoundRobin(fps=2.0), ChangeFirst(fps=2.0)])
def test_a_budget_holds_whatever_is_offered(policy: SchedulePolicy) -> None:
    seen = looks(policy, streams=5, seconds=60)
    assert 119 <= sum(seen.values()) <= 121 and policy.most_fps == 2.0
    assert max(seen.values()) - min(seen[n] for n in range(5)) <= 2, "equal streams get equal looks"


def test_it_says_how_long_to_rest() -> None:
    policy = RoundRobin(fps=0.5)
    state = policy.new_state()
    assert policy.choose([waiting(0)], 4, 10.0, state) == [0]
    assert policy.choose([waiting(0)], 4, 10.5, state) == [] and policy.rest_s(10.5, state) == pytest.approx(1.5)
    assert policy.choose([waiting(0)], 4, 12.0, state) == [0]


def test_a_rest_saves_no_more_than_a_second_of_the_budget() -> None:
    policy = OldestFirst(fps=3.0)
    state = policy.new_state()
    policy.choose([], 8, 0.0, state)
    assert len(policy.choose([waiting(n) for n in range(8)], 8, 1000.0, state)) == 3


def test_the_stream_in_which_something_happens_gets_the_looks() -> None:
    def level(stream: int, n: int) -> int:
        return 50 + 13 * (n % 7) if stream == 3 else 50

    seen = looks(ChangeFirst(fps=2.0, longest_s=20.0), streams=8, seconds=120, level=level)
    fair = looks(RoundRobin(fps=2.0), streams=8, seconds=120, level=level)
    assert seen[3] > 4 * fair[3]
    assert min(seen[n] for n in range(8)) >= 4, "and the others are looked at now and then"


def test_what_has_left_is_forgotten() -> None:
    policy = ChangeFirst()
    state = policy.new_state()
    policy.choose([waiting(n) for n in range(6)], 6, 0.0, state)
    held = state.num_bytes()
    for n in range(5):
        policy.left(n, state)
    policy.left(99, state)
    assert state.num_bytes() * 6 == held and list(state.looked_s) == [5]


def test_a_picture_of_another_size_has_changed() -> None:
    policy = ChangeFirst()
    state = policy.new_state()
    small = Waiting(1, 0.0, Frame(np.full((6, 4, 3), 50, np.uint8), 1.0))
    policy.choose([waiting(0), waiting(1)], 2, 0.0, state)
    assert policy.choose([waiting(0, level=60), small], 1, 1.0, state) == [1]


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (lambda: RoundRobin(fps=0.0), lambda: ChangeFirst(longest_s=0.0), lambda: OldestFirst(fps=-1)):
        with pytest.raises(InputError):
            wrong()
