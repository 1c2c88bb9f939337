"""What the Qwen-VL families share: frames of any size, each between marks, and three-axis positions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import PICTURE_SIZES, Encoded, VisionTower
from onlooker.core.spans import Layout
from onlooker.core.tokens import VisualTokens
from onlooker.models._checkpoint import CheckpointModel
from onlooker.models._describing import GLOBAL, PIXELS, SALIENCY, last_attending, pictures_under
from onlooker.models._prompt import Prompt
from onlooker.models._qwen_pixels import FittedPixels
from onlooker.models._qwen_vision import QwenVision

MOST_APART_S = 10.0
"""Seconds between the frames of a pair at most: what lies further apart in a stream is not one moment. The families saw
hours at 768 frames, which are as far apart."""


class QwenVideoModel(CheckpointModel):
    """A Qwen-VL checkpoint of either family.

    With `pairs`, as the families were trained: two frames are one patch in time, and bounds on pixels are those for
    videos. Without: a stream is a row of videos of one frame each, which is shown twice, as on the families' image
    path. What a video is between, and how patches lie in it, is the family's affair.

    Within a patch the time axis stands still and rows and columns count up from its start; text counts up on all axes.
    What follows a video starts behind the largest position in it: the rule of the original code and of Transformers up
    to 4.57. (5.17 and 5.23 start behind the longer side, so that the text would overlap the later moments of a long
    video; for a video of one patch it is the same.) Positions are made here and in the store only: the network's own
    count (`rope_deltas`) is neither read nor written.
    """

    vision_class: ClassVar[type[QwenVision]]
    bounded_frames: ClassVar[int]
    """Frames of a video that its processor's bounds on pixels are bounds on, together."""
    pairs = True

    def __init__(
        self, network: Any, tokenizer: Any, pixels: FittedPixels, prompt: Prompt, name: str, pairs: bool
    ) -> None:
        # A frame takes as many positions as its longer side whether tokens were dropped or not, so packing wins little.
        super().__init__(network, tokenizer, prompt, name, position_axes=3, layout="keep")
        self.vision = self.vision_class(network)
        self._pixels = pixels
        layers = range(1, network.config.vision_config.depth)
        sees_all = any(not self.vision.has_windows(layer) for layer in layers)
        self.described = frozenset({GLOBAL, PIXELS, *([SALIENCY] if sees_all else [])})
        self.offers = self.offers | self.described | {PICTURE_SIZES}
        self._start_id, self._end_id = network.config.vision_start_token_id, network.config.vision_end_token_id
        if pairs:
            self.patch_frames, self.patch_s = network.config.vision_config.temporal_patch_size, MOST_APART_S

    @classmethod
    def of_network(cls, network: Any, tokenizer: Any, folder: Path, name: str, pairs: bool) -> Self:
        config = network.config
        sizes = config.vision_config
        video_frames = cls.bounded_frames if pairs else None
        pixels = FittedPixels.of_checkpoint(folder, sizes.patch_size, sizes.spatial_merge_size, video_frames)
        marks = [config.vision_start_token_id, config.video_token_id, config.vision_end_token_id]
        return cls(network, tokenizer, pixels, Prompt.from_folder(tokenizer, marks, folder), name, pairs)

    # ------------------------------------------------------------------------------------------------ seeing

    def preprocess(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        return self._pixels.prepare(images, self.spec.device)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        return self.vision.embed_patches(pixels)

    def tower(self, pixels_shape: tuple[int, ...]) -> VisionTower:
        return self.vision.tower(*self.vision.patches(pixels_shape))

    def resize(self, image: np.ndarray) -> np.ndarray:
        return self._pixels.resize(image)

    def taps_for(self, wanted: frozenset[str], tower: VisionTower) -> frozenset[int]:
        last = last_attending(tower.layers) if SALIENCY in wanted else None
        return frozenset() if last is None else frozenset({last - 1})

    def describe(
        self, wanted: frozenset[str], encoded: Encoded, pixels: Tensor, features: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Saliency of a token is the mean of its merge block's; the one global row is the mean of all tokens, as the
        families have no class token."""
        extras, whole = {}, {}
        if SALIENCY in wanted:
            tower = self.tower(tuple(pixels.shape[1:]))
            last = last_attending(tower.layers)
            assert last is not None, "offered only where there is such a layer"
            received = tower.layers[last].received(encoded.taps[last - 1])  # pyright: ignore[reportAttributeAccessIssue]
            extras[SALIENCY] = received.unflatten(1, (-1, tower.group)).mean(-1)
        if PIXELS in wanted:
            rows, cols = (side // self.vision.factor for side in pixels.shape[2:])
            extras[PIXELS] = pictures_under(pixels, (self._pixels.mean, self._pixels.std), (rows, cols))
        if GLOBAL in wanted:
            whole[GLOBAL] = features.mean(1, keepdim=True)
        return extras, whole

    # ------------------------------------------------------------------------------------------------ reading

    def frame_ids(self, time_s: float) -> list[int]:
        return [self._start_id]

    def frame_closing_ids(self) -> list[int]:
        return [self._end_id]

    # ------------------------------------------------------------------------------------------------ placing

    def place_tokens(self, tokens: VisualTokens, layout: Layout) -> tuple[Tensor, int]:
        """Time stands still, rows and columns count. `keep`: as in the full grid; `pack`: rows and columns move
        together to the frame's start, and the frame reaches as far as they do (waits for the device)."""
        if not len(tokens):
            return torch.zeros(3, 0, dtype=torch.int64, device=tokens.frame.device), 0
        sides = torch.stack([tokens.row, tokens.col])
        reach = max(tokens.grid)
        if layout == "pack":
            first, last = torch.stack([sides.min(), sides.max()]).tolist()
            sides, reach = sides - first, last - first + 1
        return torch.cat([torch.zeros_like(sides[:1]), sides]), reach
