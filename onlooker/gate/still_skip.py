"""Skip a frame in which nothing has moved since the last that was encoded, judged by its pixels.

The pixel gate in front of the tower (Streaming Token Compression and its kin compute at least a part of every frame;
a frozen picture needs none). A frame is compared with the last one that was *let through*, not with the one before it:
slow drift adds up until it is seen. It is compared cell by cell and judged by the cell that changed most: a small thing
that moves in a corner does not disappear in the mean of the picture. The mean over a cell is hardly touched by the
noise of a sensor.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import Gate, MemoryView
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState

CELLS = 24
"""Cells along each side of the picture, at most."""
MOST_PIXELS = 384
"""Along the shorter side; of larger pictures every second, third, ... pixel is looked at."""


@dataclass
class Seen(StreamState):
    """The last frame that was let through."""

    replaces: ClassVar[bool] = True

    cells: Tensor | None = None
    """Mean colour of its cells, float32 `[rows, cols, 3]`."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of the picture."""
    time_s: float = 0.0
    """Its stream time."""


@dataclass(frozen=True)
class StillSkip(Gate):
    """A pixel gate with an anchor and a longest rest."""

    threshold: float = 3.0
    """Largest change of a cell's mean colour, in grey levels (0 to 255), that counts as stillness."""
    longest_s: float | None = 60.0
    """Seconds after which a still frame is encoded all the same; none for never."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 255:
            raise InputError("threshold is in grey levels", given=f"threshold={self.threshold}", do="give 0 to 255")
        if self.longest_s is not None and not self.longest_s > 0:
            raise InputError(
                "longest_s is a time in seconds", given=f"longest_s={self.longest_s}", do="give more than 0, or none"
            )

    def new_state(self) -> Seen:
        """No frame yet."""
        return Seen()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float:
        """Compare with the frame that was let through last."""
        assert isinstance(state, Seen)
        size, cells = frame.image.shape[:2], frame.cells(CELLS, MOST_PIXELS)
        is_still = (
            state.cells is not None
            and state.size == size
            and float((cells - state.cells).abs().max()) <= self.threshold
            and (self.longest_s is None or frame.time_s - state.time_s < self.longest_s)
        )
        if is_still:
            return 0.0
        state.cells, state.size, state.time_s = cells, (int(size[0]), int(size[1])), frame.time_s
        return 1.0
