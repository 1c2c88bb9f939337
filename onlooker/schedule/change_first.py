"""The stream whose picture has changed most since it was last looked at is next; nobody waits for ever.

Under a budget of looks most cameras of a house show nothing new. A stream's picture is compared with the one that was
last *taken* of it, cell by cell, and the cell that changed most counts, as in the gate `still_skip`: slow drift adds
up, and a small thing that moves does not disappear in a mean. A stream that was passed over for `longest_s` goes before
all that have changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from onlooker.core.contracts import Waiting
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.schedule._budget import Budgeted, Spent

CELLS = 8
"""Cells along each side of the picture."""
MOST_PIXELS = 96
"""Along the shorter side; of larger pictures every second, third, ... pixel is looked at."""


@dataclass
class Looked(Spent):
    """What was last looked at of each stream, by its number."""

    cells: dict[int, Tensor] = field(default_factory=dict)
    """Mean colour of its picture's cells, float32 `[rows, cols, 3]`."""
    looked_s: dict[int, float] = field(default_factory=dict)
    """When, on the scheduler's clock."""


@dataclass(frozen=True)
class ChangeFirst(Budgeted):
    """Greatest change first, with a longest wait."""

    longest_s: float = 30.0
    """Seconds after which a stream is looked at whatever has changed, as far as the budget allows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.longest_s > 0:
            raise InputError(
                "longest_s is a time in seconds", given=f"longest_s={self.longest_s}", do="give more than 0"
            )

    def new_state(self) -> Looked:
        """Nothing was looked at."""
        return Looked()

    def order(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> list[int]:
        """Streams without a look, then those that are overdue, the longest first, then by their change."""
        assert isinstance(state, Looked)

        def urgency(place: int) -> tuple[int, float, float, int]:
            one = waiting[place]
            if (looked_s := state.looked_s.get(one.stream)) is None:
                return 0, one.since_s, 0.0, one.stream
            if now_s - looked_s >= self.longest_s:
                return 1, looked_s, 0.0, one.stream
            before, now = state.cells[one.stream], one.frame.cells(CELLS, MOST_PIXELS)
            changed = float((now - before).abs().max()) if now.shape == before.shape else 255.0
            return 2, -changed, one.since_s, one.stream

        return sorted(range(len(waiting)), key=urgency)

    def taken(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> None:
        """Remember what they show."""
        assert isinstance(state, Looked)
        for one in waiting:
            state.cells[one.stream], state.looked_s[one.stream] = one.frame.cells(CELLS, MOST_PIXELS), now_s

    def left(self, stream: int, state: StreamState) -> None:
        """Forget its picture."""
        assert isinstance(state, Looked)
        state.cells.pop(stream, None)
        state.looked_s.pop(stream, None)
