"""Encode one frame in so many, whatever they show."""

from dataclasses import dataclass
from typing import Self

from onlooker.core.contracts import Gate, MemoryView
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState


@dataclass
class Counted(StreamState):
    """Frames since the last that was encoded."""

    frames: int = 0


@dataclass(frozen=True)
class EveryNth(Gate):
    """The plain baseline of frame routers: what they save has to be worth more than a lower rate."""

    n: int = 2
    """One frame in this many is encoded; the first one always is."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError("n counts frames", given=f"n={self.n}", do="give 1 or more")

    def less(self) -> Self | None:
        """Half as many."""
        return type(self)(2 * self.n) if self.n < 64 else None

    def new_state(self) -> Counted:
        """The next frame is the first."""
        return Counted()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float:
        """Count to `n`."""
        assert isinstance(state, Counted)
        turn = state.frames == 0
        state.frames = (state.frames + 1) % self.n
        return float(turn)
