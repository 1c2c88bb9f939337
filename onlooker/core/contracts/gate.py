"""What a gate sees and fills in."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onlooker.core.contracts.method import Method
from onlooker.core.frame import Frame
from onlooker.core.spans import Hint, Span
from onlooker.core.state import StreamState

PICTURE_SIZES = "picture_sizes"
"""What a model offers that encodes a smaller picture with less work (`VideoModel.shrunk`); gates that shrink frames
need it."""


@dataclass(frozen=True)
class MemoryView:
    """What a gate may know of the memory of its stream: to look at, not to change."""

    spans: Sequence[Span] = ()
    """All blocks in stream order: kind, tokens, times, tier."""
    seen_s: float | None = None
    """Stream time of the newest frame that was not skipped; None before the first."""
    hint: Hint | None = None
    """What the memory made of the newest frame that it took in (`MemoryPolicy.hint`); None: it does not say."""


class Gate(Method):
    """Decides of every frame, before the vision tower, whether it is worth the tower's work.

    It looks at each frame once, when it comes, alone; frames that it lets through are encoded together with those of
    other streams. A frame that is skipped costs no pass through any network; the stream's time goes on, and it is
    counted (`frames_skipped`). In models that read frames in pairs, the next frame that is let through makes the pair.

    The first frame of a stream is never skipped: a question needs something to look at.
    """

    heeds_memory: ClassVar[bool] = False
    """Whether it looks at the blocks of the memory or at its hint, and not only at when a frame was seen last: then no
    frame is shown to it before those ahead of it are remembered."""

    @abstractmethod
    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float | np.ndarray:
        """What becomes of the newest frame of one stream; `state` is updated.

        1.0: it is encoded as it is. 0.0: it is skipped. Between: it is encoded with so large a share of the rows and
        columns that the model would give it (for models that offer `PICTURE_SIZES`). A picture, uint8
        `[rows, cols, 3]`: that is encoded in its place, under its time, such as one on which several frames are tiled.

        `frame.image` must not be kept or written into. `frame.codec` is what the encoder of the video said, where the
        source was asked for it and has it: of the way from the last frame that came here to this one.
        """
