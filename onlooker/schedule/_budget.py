"""A budget of frames a second for all streams together, as schedules share it."""

from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.contracts import SchedulePolicy, Waiting
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState

BURST_S = 1.0
"""The budget of so many seconds may be spent at once, after a rest."""


@dataclass
class Spent(StreamState):
    """What is left of the budget."""

    credit: float = 1.0
    """Frames that may be taken now."""
    at_s: float | None = None
    """When that was so."""


@dataclass(frozen=True)
class Budgeted(SchedulePolicy):
    """Base of schedules with a budget: they say in which order streams come, `order`."""

    fps: float | None = None
    """Frames a second that are looked at, of all streams together; none for as many as there is time for."""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 100_000:
            raise InputError("fps is a rate above 0", given=f"fps={self.fps}", do="give frames a second, or none")

    @property
    def most_fps(self) -> float | None:
        """The budget."""
        return self.fps

    def new_state(self) -> Spent:
        """One frame may be taken at once."""
        return Spent()

    def order(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> list[int]:
        """Places in `waiting`, the most urgent first; ties are settled by the number of the stream."""
        raise NotImplementedError

    def taken(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> None:
        """These are looked at now."""
        return

    def choose(self, waiting: Sequence[Waiting], room: int, now_s: float, state: StreamState) -> list[int]:
        """The first in order, as many as there is room and budget for."""
        assert isinstance(state, Spent)
        if self.fps is not None:
            self._earn(now_s, state)
            room = min(room, int(state.credit + 1e-9))
        if room < 1:
            return []
        chosen = self.order(waiting, now_s, state)[:room]
        state.credit -= len(chosen) if self.fps is not None else 0
        self.taken([waiting[place] for place in chosen], now_s, state)
        return chosen

    def rest_s(self, now_s: float, state: StreamState) -> float:
        """Until a whole frame is earned."""
        assert isinstance(state, Spent)
        return max(0.0, 1.0 - state.credit) / self.fps if self.fps is not None else 0.0

    def _earn(self, now_s: float, state: Spent) -> None:
        assert self.fps is not None
        if state.at_s is not None:
            state.credit += self.fps * max(0.0, now_s - state.at_s)
        state.credit, state.at_s = min(state.credit, max(1.0, self.fps * BURST_S)), now_s
