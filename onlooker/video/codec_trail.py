"""Motion vectors of all decoded pictures, chained from one frame that is taken to the next.

A vector of an encoded block leads to the picture it was predicted from: of a P-picture to the last I- or P-picture, of
a B-picture to that (source -1) or to the next one (source +1). FFmpeg does not say which of several references it was;
the nearest is assumed. So `chain[picture](x) = vector(x) + chain[reference](x + vector(x))`, until the frame taken last
is reached, on cells of 4 pixels. A vector to the next reference is turned around under the assumption of even motion.
Exact, up to a cell, for streams without B-pictures, as cameras send them; with pyramids of B-pictures too little.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onlooker.core.codec import CodecRecord
from onlooker.video.picture import Turn, side_data_of, turn_of
from onlooker.video.source import SourceReport

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

CELL, BLOCK = 4, 16
_TYPES = {1: "I", 2: "P", 3: "B"}
_MAX_SIZES = 256


@dataclass(frozen=True, slots=True)
class _Field:
    """Over cells: displacement [rows, cols, 2] in stored pixels to the frame taken last, and the share known of it."""

    motion: np.ndarray
    known: np.ndarray


class CodecTrail:
    """Fed with every packet and every decoded picture of one stream; gives the record of those that are taken.

    `codec` names the decoder. Counts frames without vectors in `report`, and notes why.
    """

    def __init__(self, report: SourceReport, codec: str) -> None:
        self._report, self._codec = report, codec
        self._sizes: dict[int, int] = {}
        self._orders: dict[int, int] = {}
        self._num_packets = 0
        self._anchor: tuple[int, _Field] | None = None
        self._now: _Field | None = None
        self._since = [0, 0, 0]
        self._has_taken = False
        self._has_vectors = False

    def packet(self, pts: int | None, size: int) -> None:
        """Count a packet that goes to the decoder."""
        if pts is None:
            return
        self._sizes[pts], self._orders[pts] = size, self._num_packets
        self._num_packets += 1
        while len(self._sizes) > _MAX_SIZES:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest], self._orders[oldest]

    def picture(self, frame: "VideoFrame") -> None:
        """Follow a decoded picture, in the order shown."""
        kind, pts = _TYPES.get(int(frame.pict_type), "?"), frame.pts or 0
        self._since[0] += 1
        self._since[1] += kind == "I"
        self._since[2] += self._sizes.get(pts, 0)
        vectors = _vectors_of(frame)
        self._has_vectors |= vectors is not None
        if self._anchor is not None and self._anchor[1].known.shape != _grid(frame):
            self._anchor = None
        self._now = self._chained(frame, kind, pts, vectors)
        if kind != "B":
            self._anchor = (pts, self._now)

    def take(self, frame: "VideoFrame") -> CodecRecord:
        """The record of the picture given last, from which the next begins."""
        assert self._now is not None, "a picture is followed before it is taken"
        motion = known = None
        if self._has_taken and self._has_vectors:
            turn = turn_of(frame)
            scale = np.array([frame.height, frame.width], np.float32)
            motion = _turned(_in_blocks(self._now.motion) / scale, turn, True)
            known = _turned(_in_blocks(self._now.known), turn, False)
        elif self._has_taken:
            self._report.num_without_motion += 1
            self._report.note(f"the decoder of {self._codec} exports no motion vectors")
        kind = _TYPES.get(int(frame.pict_type), "?")
        record = CodecRecord(kind, self._since[0], self._since[1], self._since[2], motion, known)
        self._restart(frame, kind)
        return record

    def _restart(self, frame: "VideoFrame", kind: str) -> None:
        """Let chains end at the frame that was just taken."""
        assert self._now is not None
        rows, cols = _grid(frame)
        here = _Field(np.zeros((rows, cols, 2), np.float32), np.ones((rows, cols), np.float32))
        if kind != "B":
            self._anchor = (frame.pts or 0, here)
        elif self._anchor is not None:
            # From the last reference to this picture is the way back of this picture's own vectors.
            step = self._step or _Field(here.motion, np.zeros_like(here.known))
            self._anchor = (self._anchor[0], _Field(-step.motion, step.known))
        self._since = [0, 0, 0]
        self._has_taken = True

    _step: _Field | None = None

    def _chained(self, frame: "VideoFrame", kind: str, pts: int, vectors: Any) -> _Field:
        rows, cols = _grid(frame)
        nothing = _Field(np.zeros((rows, cols, 2), np.float32), np.zeros((rows, cols), np.float32))
        self._step = None
        if self._anchor is None or vectors is None:
            return nothing  # an I-picture says nothing of motion
        begin, back = self._anchor
        self._step = step = _step_of(vectors, (rows, cols), self._turning(kind, pts, begin))
        # The cell of the reference in which each cell's middle lies.
        row = np.clip(np.arange(rows)[:, None] + np.rint(step.motion[..., 0] / CELL).astype(int), 0, rows - 1)
        col = np.clip(np.arange(cols)[None] + np.rint(step.motion[..., 1] / CELL).astype(int), 0, cols - 1)
        return _Field(step.motion + back.motion[row, col], step.known * back.known[row, col])

    def _turning(self, kind: str, pts: int, begin: int) -> float:
        """By what a vector to the next reference is multiplied to lead to the last one."""
        order = self._orders.get(pts)
        if kind != "B" or order is None:
            return 0.0
        later = [other for other, place in self._orders.items() if other > pts and place < order]
        return -(pts - begin) / (min(later) - pts) if later else 0.0


def _grid(frame: "VideoFrame") -> tuple[int, int]:
    """Cells of the picture, filled up to whole blocks."""
    return -(-frame.height // BLOCK) * (BLOCK // CELL), -(-frame.width // BLOCK) * (BLOCK // CELL)


def _in_blocks(field: np.ndarray) -> np.ndarray:
    """The mean over the cells of each block."""
    times = BLOCK // CELL
    rows, cols = field.shape[0] // times, field.shape[1] // times
    return field.reshape(rows, times, cols, times, *field.shape[2:]).mean((1, 3))


def _vectors_of(frame: "VideoFrame") -> Any:
    try:
        data: Any = side_data_of(frame, "MOTION_VECTORS")
    except ValueError:  # PyAV lists nothing where it does not know one kind
        return None
    return None if data is None else data.to_ndarray()


def _step_of(vectors: Any, grid: tuple[int, int], turning: float) -> _Field:
    """Vectors to the last reference, on the cells that their blocks cover; of two the one that leads back."""
    field, known = np.zeros((*grid, 2), np.float32), np.zeros(grid, np.float32)
    is_back = vectors["source"] < 0
    for used, factor in ((vectors[~is_back], turning), (vectors[is_back], 1.0)):
        if not factor or not len(used):
            continue
        scale = factor / np.maximum(used["motion_scale"], 1)
        motion = np.stack([used["motion_y"] * scale, used["motion_x"] * scale], axis=-1)
        height, width = used["h"].astype(int), used["w"].astype(int)
        top, left = (used["dst_y"] - height // 2) // CELL, (used["dst_x"] - width // 2) // CELL
        for down in range(BLOCK // CELL):
            for right in range(BLOCK // CELL):
                row, col = top + down, left + right
                covers = (height > down * CELL) & (width > right * CELL)
                covers &= (row >= 0) & (row < grid[0]) & (col >= 0) & (col < grid[1])
                field[row[covers], col[covers]] = motion[covers]
                known[row[covers], col[covers]] = 1.0
    return _Field(field, known)


def _turned(field: np.ndarray, turn: Turn, is_vector: bool) -> np.ndarray:
    """A field over blocks [rows, cols, ...], and its vectors, as the picture is shown."""
    if turn.transposed:
        field = np.swapaxes(field, 0, 1)
        field = field[..., ::-1] if is_vector else field
    if turn.rows_flipped:
        field = field[::-1] * (np.array([-1, 1], np.float32) if is_vector else 1)
    if turn.cols_flipped:
        field = field[:, ::-1] * (np.array([1, -1], np.float32) if is_vector else 1)
    return np.ascontiguousarray(field, np.float32)
