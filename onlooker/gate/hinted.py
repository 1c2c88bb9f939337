"""Encode a frame that shows little new as small as the memory thought the last one worth.

CurveStream (arXiv 2603.19571) keeps the frames at which a stream bends whole, middling ones small, and drops the rest;
its score needs features, so it comes after the tower (`memory=curvestream`, `MemoryPolicy.hint`). This gate takes it to
the front: a frame that looks much like the last one is encoded with the share of its size that the memory's verdict on
that one calls for, and one that looks different is encoded whole, as nobody has judged it yet. Training-free. The
features of small frames are rougher, so a memory that judges by them sees a still stream a little less still.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import PICTURE_SIZES, Gate, MemoryView
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState

CELLS, MOST_PIXELS = 24, 384
"""Cells along each side of the picture that are compared, and its pixels along the shorter side that count, at most."""


@dataclass
class Looked(StreamState):
    """The frame before."""

    replaces: ClassVar[bool] = True

    cells: Tensor | None = None
    """Mean colour of its cells, float32 `[rows, cols, 3]`."""


@dataclass(frozen=True)
class Hinted(Gate):
    """Small frames where the memory has no use for whole ones."""

    needs: ClassVar[frozenset[str]] = frozenset({PICTURE_SIZES})
    heeds_memory: ClassVar[bool] = True

    fuzzy: float = 0.6
    """Share of its rows and columns for a frame like one that the memory keeps small."""
    dropped: float = 0.4
    """Share of its rows and columns for a frame like one that the memory does not keep."""
    threshold: float = 24.0
    """Change of a cell's mean colour, in grey levels (0 to 255), from which on a frame is unlike the one before."""

    def __post_init__(self) -> None:
        if not (0 < self.fuzzy <= 1 and 0 < self.dropped <= 1 and 0 <= self.threshold <= 255):
            given = f"fuzzy={self.fuzzy}, dropped={self.dropped}, threshold={self.threshold}"
            raise InputError("no such gate", given=given, do="shares above 0 and up to 1, a threshold from 0 to 255")

    def new_state(self) -> Looked:
        """No frame yet."""
        return Looked()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float:
        """Compare with the frame before, and look up what the memory made of it."""
        assert isinstance(state, Looked)
        before, state.cells = state.cells, frame.cells(CELLS, MOST_PIXELS)
        if memory.hint is None or before is None or before.shape != state.cells.shape:
            return 1.0
        if float((state.cells - before).abs().max()) >= self.threshold:
            return 1.0
        return {"clear": 1.0, "fuzzy": self.fuzzy, "dropped": self.dropped}[memory.hint]
