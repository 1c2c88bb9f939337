"""The promises of schedules."""

import typing
from typing import Any

from contract_base import Opener, Stream
from contract_streams import (
    picture,
)

from onlooker.core.contracts import Waiting
from onlooker.core.frame import Frame


class ScheduleStream(Stream):
    """A scheduler whose streams come and go: some wait with a frame each time, and room is for two."""

    num_long = 400

    def __init__(self, method: Any, seed: int = 0) -> None:
        super().__init__(method, seed)
        self.since: dict[int, float] = {}

    def input(self, number: int) -> list[Waiting]:
        first = number // 25
        return [
            Waiting(n, self.since.get(n, 0.0), Frame(picture(self.seed + n, number), float(number)))
            for n in range(first, first + 6)
            if (n * 7 + number + self.seed) % 5
        ]

    def push_input(self, given: list[Waiting]) -> list[int]:
        now_s = given[0].frame.time_s
        if now_s % 25 == 0 and now_s:
            self.method.left(int(now_s) // 25 - 1, self.state)
            self.since.pop(int(now_s) // 25 - 1, None)
        places = self.method.choose(given, 2, now_s, self.state)
        self.since |= {given[place].stream: now_s for place in places}
        return [given[place].stream for place in places]

    def fork(self) -> "ScheduleStream":
        twin = typing.cast(ScheduleStream, super().fork())
        twin.since = dict(self.since)
        return twin


def choices_may_be_taken(method: Any, opened: Opener) -> None:
    """Streams that wait, each once, never more than there is room for; also with one, no room, or none at all."""
    stream = opened(method)
    for number in range(60):
        given = stream.input(number)
        chosen = stream.push_input(given)
        assert len(set(chosen)) == len(chosen) <= 2, f"{chosen} were chosen, with room for 2"
        assert set(chosen) <= {one.stream for one in given}, f"{chosen} do not all wait"
    state = method.new_state()
    frame = Frame(picture(0, 0), 0.0)
    assert method.choose([], 4, 0.0, state) == []
    assert method.choose([Waiting(3, 0.0, frame)], 0, 0.0, state) == [], "chosen where there is no room"
    assert method.choose([Waiting(3, 0.0, frame)], 4, 9.0, method.new_state()) == [0], "a lone stream is not looked at"
    method.left(77, state)
    assert method.rest_s(0.0, state) >= 0 and (method.most_fps is None or method.most_fps > 0)


def nobody_waits_for_ever(method: Any, opened: Opener) -> None:
    """With eight streams that all wait, and one that changes, each is looked at within 200 steps."""
    state, since, seen = method.new_state(), dict.fromkeys(range(8), 0.0), set()
    for number in range(200):
        frames = [Frame(picture(n, number if n == 5 else 0), float(number)) for n in range(8)]
        waiting = [Waiting(n, since[n], frame) for n, frame in enumerate(frames)]
        for place in method.choose(waiting, 1, float(number), state):
            seen.add(place)
            since[place] = float(number)
    assert seen == set(range(8)), f"streams {sorted(set(range(8)) - seen)} were never looked at"


SCHEDULE = (choices_may_be_taken, nobody_waits_for_ever)
