"""Whose frame a scheduler takes next: its schedule, and what that remembers of all streams."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onlooker.core.contracts import SchedulePolicy, Waiting
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.engine.stream_queue import QueuedFrame, StreamQueue

SHORTEST_REST_S = 0.001


class Turns:
    """A schedule at work on the queues of one scheduler."""

    def __init__(self, policy: SchedulePolicy) -> None:
        self.policy, self.state = policy, policy.new_state()
        self._numbers: dict[StreamQueue, int] = {}
        self._next = 0
        self._rests_until_s = 0.0

    def choose(
        self, queues: Sequence["StreamQueue"], room: int, now_s: float
    ) -> list[tuple["StreamQueue", "QueuedFrame"]]:
        """The frames that are taken now, at most `room`."""
        ready = [(queue, since, queued.frame) for queue in queues for since, queued in queue.first_ready()]
        waiting = [Waiting(self._number(queue), since_s, frame) for queue, since_s, frame in ready]
        places = self.policy.choose(waiting, room, now_s, self.state) if waiting else []
        if len(set(places)) < len(places) or len(places) > room:
            raise InputError(
                f"{type(self.policy).__name__} chose frames that may not be taken",
                given=f"places {places}, with room for {room}",
                do="correct the schedule: each place once, at most as many as there is room for",
            )
        self._rests_until_s = 0.0
        if waiting and not places:
            self._rests_until_s = now_s + max(SHORTEST_REST_S, self.policy.rest_s(now_s, self.state))
        taken = ((ready[place][0], ready[place][0].take()) for place in places)
        return [(queue, queued) for queue, queued in taken if queued is not None]

    def rest_s(self, now_s: float) -> float:
        """Seconds in which nothing will be chosen, whoever waits."""
        return max(0.0, self._rests_until_s - now_s)

    def within(self, timeout_s: float, now_s: float) -> float:
        """How long to wait at most: when a rest is over, there is something to do again."""
        rest_s = self.rest_s(now_s)
        return min(timeout_s, rest_s) if rest_s else timeout_s

    def left(self, queue: "StreamQueue") -> None:
        """A stream has ended."""
        if (number := self._numbers.pop(queue, None)) is not None:
            self.policy.left(number, self.state)

    def bounded(self, fps: float) -> float:
        """Of so many frames a second, those that the schedule lets through."""
        return fps if self.policy.most_fps is None else min(fps, self.policy.most_fps)

    def _number(self, queue: "StreamQueue") -> int:
        if queue not in self._numbers:
            self._numbers[queue], self._next = self._next, self._next + 1
        return self._numbers[queue]
