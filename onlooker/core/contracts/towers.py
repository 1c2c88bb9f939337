"""What a further vision tower fills in: a second pair of eyes whose features join those of the model's own tower."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from torch import Tensor

from onlooker.core.contracts.vision import Encoded, VisionTower
from onlooker.core.state import StreamState

if TYPE_CHECKING:
    from onlooker.core.contracts.model import ModelSpec


REALISES = ("merv", "videogpt")


class SideTower(ABC):
    """A further vision tower: an encoder of motion, or of whatever the model's own tower is blind to.

    It sees the same patches of frames, at a size of its own. The engine's encoder accelerator runs it like the model's
    own tower, with a state of its own for each stream; what comes out is fused before the projection. It holds weights
    and no stream state: what it remembers of a stream (the frames before, for a clip encoder) is a `StreamState` that
    the session owns, forks, counts, saves and loads. `VideoModel.attach_tower` adds it to a model, which then offers
    its `name` and what it `offers`.
    """

    name: ClassVar[str]
    """What methods need it by, in lower case."""
    offers: ClassVar[frozenset[str]] = frozenset()
    """What else methods may need of it."""
    version: str = "0"
    """Of its weights: a session that was saved with others is refused."""

    weights_bytes: int = 0
    """Of its weights, for planning."""

    @classmethod
    def for_model(cls, spec: "ModelSpec", tower_dim: int) -> Self:
        """The tower for a model of these sizes, whose own tower has so wide tokens: asked for where a file of it is
        named behind a model (`pocket-aware+my_tower.py`)."""
        return cls()

    def new_state(self) -> StreamState:
        """What it remembers of a stream before its first patch; nothing by default."""
        return StreamState()

    @abstractmethod
    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Pixels of one patch of frames (uint8 `[rows, cols, 3]` each, as many as a patch has) on the device:
        `[channels, rows, cols]`."""

    @abstractmethod
    def embed_patches(self, pixels: Tensor, states: Sequence[StreamState]) -> Tensor:
        """`[streams, channels, rows, cols]` to `[streams, tokens, dim]`; row b belongs to `states[b]`, which is
        updated. The result of a stream must not depend on the others."""

    @abstractmethod
    def tower(self, pixels_shape: tuple[int, ...]) -> VisionTower:
        """The tower for pixels of shape `[channels, rows, cols]`."""

    @abstractmethod
    def fuse(self, encoded: Encoded, own: Encoded, tower: VisionTower) -> Encoded:
        """What the model's own `tower` gave, `encoded`, joined with what this one gave: of the shapes of `encoded`, as
        the model projects it. Row by row; must not write into either."""

    def beside(self, own: Encoded, grid: tuple[int, int]) -> Tensor | None:
        """Tokens of its own that follow those of the frame, as VideoGPT+ concatenates two encoders (arXiv 2406.09418),
        from what it gave: `[streams, rows * cols, hidden_dim]` of the language model's width, in raster order. They lie
        as whole rows under the frame's token grid (`grid`: its rows and cols), are compressed with it, and are no more
        than this tower has tokens. None, the default: it adds none."""
        return None
