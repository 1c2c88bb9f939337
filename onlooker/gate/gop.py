"""Skip the frames of which the video's own encoder says that nothing happened.

Predictive codecs (H.264, MPEG-4, MPEG-2) say for nothing how far each block moved and what it cost; CodecSight (arXiv
2604.06036) and CoPE-VideoLM (arXiv 2602.13191) build on that, and publish no code: this is our own rule. A frame is
skipped while, since the last one that was let through, no block has moved farther than `motion`, little is of unknown
origin, and no packet was much larger than is usual here. An I-picture on the way breaks the chain of vectors.

Where the encoder says nothing (no record, no vectors, an I-picture on the way) the pixels decide, as in `still_skip`;
such frames are counted in the state.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onlooker.core.checks import number
from onlooker.core.contracts import Gate, MemoryView
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.gate.still_skip import CELLS, MOST_PIXELS, Seen, StillSkip

FORGET = 1.05
"""How fast the usual size of a quiet frame may grow, from one frame to the next."""


@dataclass
class Followed(StreamState):
    """What happened since the last frame that was let through."""

    replaces: ClassVar[bool] = True

    moved: float = 0.0
    """The farthest that any block may have moved, in shares of the picture."""
    unknown: float = 0.0
    """The share of blocks of unknown origin, summed."""
    quiet: float = 0.0
    """Bytes of a picture when nothing happens."""
    pixels: Seen = field(default_factory=Seen)
    num_fallbacks: int = 0
    """Frames that were judged by their pixels."""


@dataclass(frozen=True)
class Gop(Gate):
    """A gate by motion vectors and packet sizes."""

    hears_codec: ClassVar[bool] = True

    motion: float = 0.01
    """How far a block may move, in shares of the picture, before a frame is encoded."""
    unknown: float = 0.05
    """Share of blocks that may be new before a frame is encoded."""
    burst: float = 4.0
    """A picture with so many times the bytes of a quiet one is encoded."""
    longest_s: float | None = 60.0
    """Seconds after which a still frame is encoded all the same; none for never."""
    threshold: float = 3.0
    """Where the encoder says nothing: largest change of a cell's mean colour, in grey levels, that is stillness."""

    def __post_init__(self) -> None:
        number("motion", self.motion, least=0.0, most=1.0, do="a share of the picture, such as 0.01")
        number("unknown", self.unknown, least=0.0, most=1.0, do="a share of the blocks, such as 0.05")
        number("burst", self.burst, least=1.0, do="a multiple, such as 4")
        self._pixels()

    def _pixels(self) -> StillSkip:
        return StillSkip(threshold=self.threshold, longest_s=self.longest_s)

    def new_state(self) -> Followed:
        """No frame yet."""
        return Followed()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float:
        """Follow the vectors; where there are none, compare the pixels."""
        assert isinstance(state, Followed)
        rested = memory.seen_s is not None and (self.longest_s is None or frame.time_s - memory.seen_s < self.longest_s)
        if (still := self._by_codec(frame, state)) is None:
            state.num_fallbacks += 1
            state.pixels = state.pixels.fork()
            if not self._pixels().look(frame, memory, state.pixels) and rested:
                return 0.0
        elif still and rested:
            return 0.0
        else:
            size = frame.image.shape[:2]
            cells = frame.cells(CELLS, MOST_PIXELS)
            state.pixels = Seen(cells, (int(size[0]), int(size[1])), frame.time_s)
        state.moved = state.unknown = 0.0
        return 1.0

    def _by_codec(self, frame: Frame, state: Followed) -> bool | None:
        """Whether nothing happened; None where the encoder does not say."""
        said = frame.codec
        if said is None or said.motion is None or said.known is None or said.num_intra:
            return None
        each = said.num_bytes / max(1, said.num_pictures)
        state.quiet = min(each, state.quiet * FORGET) if state.quiet else each
        state.moved += float((np.linalg.norm(said.motion, axis=-1) * said.known).max())
        state.unknown += 1 - float(said.known.mean())
        bursts = each > self.burst * max(1.0, state.quiet)
        return state.moved <= self.motion and state.unknown <= self.unknown and not bursts
