"""Now and then a thumbnail of the last frames, tiled on one picture, in the place of the newest one (TS-LLaVA).

Qu et al., "TS-LLaVA: Constructing Visual Tokens through Thumbnail-and-Sampling for Training-Free Video Large Language
Models" (arXiv 2411.11066): six frames of a clip are tiled on one picture, whose tokens are read beside tokens sampled
from all frames. Changed: a stream has no end, so a thumbnail of the last `side * side` frames that are `apart` frames
apart comes every `every` frames, under the time of the newest, which is its last tile. The compressor `thumbnail` with
the same `every` keeps it whole and samples the others. While there are fewer frames, the newest fills the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from onlooker.core.checks import whole
from onlooker.core.contracts import Gate, MemoryView
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState


@dataclass
class Tiles(StreamState):
    """The last frames, small."""

    replaces: ClassVar[bool] = True

    tiles: list[Tensor] = field(default_factory=list)
    """Oldest first, uint8 `[rows, cols, 3]`."""
    count: int = 0
    """Frames since the stream began."""


@dataclass(frozen=True)
class Thumbnail(Gate):
    """A rolling thumbnail."""

    realises: ClassVar[tuple[str, ...]] = ("ts_llava",)

    every: int = 8
    """One frame in so many is replaced by a thumbnail; the same number as the compressor's."""
    side: int = 2
    """Tiles along each side of a thumbnail."""
    apart: int = 2
    """Frames from one tile to the next."""

    def __post_init__(self) -> None:
        for name, most in (("every", 1 << 20), ("side", 8), ("apart", 1 << 20)):
            whole(name, getattr(self, name), least=1, most=most)

    def new_state(self) -> Tiles:
        """No frame yet."""
        return Tiles()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float | np.ndarray:
        """The frame as it is, or the thumbnail whose turn it is."""
        assert isinstance(state, Tiles)
        number, state.count = state.count, state.count + 1
        is_due = number % self.every == self.every - 1
        if not is_due and number % self.apart:
            return 1.0
        rows, cols = frame.image.shape[:2]
        size = (max(1, rows // self.side), max(1, cols // self.side))
        tile = _small(frame.image, size)
        kept = [one for one in state.tiles if one.shape == tile.shape]
        if number % self.apart == 0:
            state.tiles = kept = [*kept, tile][-(self.side**2) :]
        if not is_due:
            return 1.0
        shown = kept if number % self.apart == 0 else [*kept, tile][-(self.side**2) :]
        return _tiled([*shown, *[tile] * (self.side**2 - len(shown))], self.side)


def _small(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A picture at this size, by mean colours."""
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    return interpolate(batch, size=size, mode="area")[0].permute(1, 2, 0).round().to(torch.uint8).contiguous()


def _tiled(tiles: Sequence[Tensor], side: int) -> np.ndarray:
    """Tiles in reading order on one picture."""
    lines = [torch.cat(list(tiles[first : first + side]), dim=1) for first in range(0, side * side, side)]
    return torch.cat(lines).numpy()
