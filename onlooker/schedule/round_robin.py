"""Every stream in its turn, whatever its rate: one that offers more frames gets no more looks than its neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.contracts import Waiting
from onlooker.schedule._budget import Budgeted, Spent


@dataclass
class Turn(Spent):
    """Whose turn it was last."""

    stream: int = -1


@dataclass(frozen=True)
class RoundRobin(Budgeted):
    """Streams in the order of their numbers, beginning behind the last that was looked at."""

    def new_state(self) -> Turn:
        """The first stream is next."""
        return Turn()

    def order(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> list[int]:
        """Those behind the last one first, then the others."""
        assert isinstance(state, Turn)
        return sorted(
            range(len(waiting)), key=lambda place: (waiting[place].stream <= state.stream, waiting[place].stream)
        )

    def taken(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> None:
        """The next turn begins behind the last of them."""
        assert isinstance(state, Turn)
        if waiting:
            state.stream = waiting[-1].stream
