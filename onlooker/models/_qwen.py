"""What the Qwen-VL families share: frames of any size, each between marks, and three-axis positions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import VisionTower
from onlooker.core.spans import Layout
from onlooker.core.tokens import VisualTokens
from onlooker.models._checkpoint import CheckpointModel
from onlooker.models._prompt import Prompt
from onlooker.models._qwen_pixels import FittedPixels
from onlooker.models._qwen_vision import QwenVision


class QwenVideoModel(CheckpointModel):
    """A Qwen-VL checkpoint of either family.

    A stream is read as a row of one-frame videos, each between the family's vision marks. Within a frame the time axis
    stands still and rows and columns count up from the frame's start; text counts up on all axes. What follows a frame
    starts behind its longer side. For a video of one frame, every version of Transformers places the following text so;
    they differ for longer ones (behind the longer side, or behind the largest position of all), which never occur here.
    Positions are made here and in the store only: the network's own count (`rope_deltas`) is neither read nor written.
    """

    vision_class: ClassVar[type[QwenVision]]

    def __init__(self, network: Any, tokenizer: Any, pixels: FittedPixels, prompt: Prompt, name: str) -> None:
        # A frame takes as many positions as its longer side whether tokens were dropped or not, so packing wins little.
        super().__init__(network, tokenizer, prompt, name, position_axes=3, layout="keep")
        self.vision = self.vision_class(network)
        self._pixels = pixels
        self._start_id, self._end_id = network.config.vision_start_token_id, network.config.vision_end_token_id

    @classmethod
    def of_network(cls, network: Any, tokenizer: Any, folder: Path, name: str) -> Self:
        config = network.config
        sizes = config.vision_config
        pixels = FittedPixels.of_checkpoint(folder, sizes.patch_size, sizes.spatial_merge_size)
        marks = [config.vision_start_token_id, config.video_token_id, config.vision_end_token_id]
        return cls(network, tokenizer, pixels, Prompt.from_folder(tokenizer, marks, folder), name)

    # ------------------------------------------------------------------------------------------------ seeing

    def preprocess(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        return self._pixels.prepare(images, self.spec.device)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        return self.vision.embed_patches(pixels)

    def tower(self, pixels_shape: tuple[int, ...]) -> VisionTower:
        return self.vision.tower(*self.vision.patches(pixels_shape))

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
