"""Qwen2.5-VL: window attention, gated MLPs and 2-D rotary positions in the tower, M-RoPE in the decoder.

Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923; weights and code through Transformers 5. This family tells
its decoder the seconds between frames by positions inside one long video: a stream is one, between one pair of marks,
in which patches of two frames share their rows and columns while the time axis advances with the clock. With
`pairs=False` every frame is a video of its own, and time is the order of frames only (see `_qwen`).
"""

import math

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded
from onlooker.models._qwen import QwenVideoModel
from onlooker.models._qwen_vision import QwenVision, Windows

MODEL_TYPE = "qwen2_5_vl"


class Vision(QwenVision):
    """The tower of a `Qwen2_5_VLForConditionalGeneration` and its merger."""

    def windows(self, rows: int, cols: int) -> Windows:
        """Squares of `window_size` pixels; those at the right and lower edge are smaller."""
        side = self.config.window_size // self.factor
        across = -(-(cols // self.merge) // side)
        row, col = (torch.arange(length, device=self.device) // self.merge // side for length in (rows, cols))
        return Windows.of(self.to_blocks(row[:, None] * across + col))

    def has_windows(self, layer: int) -> bool:
        return layer not in self.config.fullatt_block_indexes

    def project(self, hidden: Tensor) -> Tensor:
        """Tower output `[streams, tokens, dim]` to language tokens `[streams, tokens / 4, hidden_dim]`."""
        return self.merged(hidden, self.module.merger)


class Qwen25VL(QwenVideoModel):
    """A Qwen2.5-VL checkpoint."""

    model_type = MODEL_TYPE
    network_class = "Qwen2_5_VLForConditionalGeneration"
    vision_class = Vision
    bounded_frames = 1
    vision: Vision

    def prefix_ids(self) -> list[int]:
        return [*super().prefix_ids(), *([self._start_id] if self._is_one_video else [])]

    def frame_ids(self, time_s: float) -> list[int]:
        return [] if self._is_one_video else super().frame_ids(time_s)

    def frame_closing_ids(self) -> list[int]:
        return [] if self._is_one_video else super().frame_closing_ids()

    def note_ids(self, text: str) -> list[int]:
        """In the one video a note ends it, and another one begins behind it."""
        ids = super().note_ids(text)
        return [self._end_id, *ids, self._start_id] if self._is_one_video else ids

    def closing_embeddings(self) -> Tensor:
        return self.embed_text([self._end_id] if self._is_one_video else [])

    def clock(self, time_s: float) -> int | None:
        """Seconds since the stream began times the family's positions per second, rounded down as the library does.
        Half a millisecond of grace: times of frames are rounded."""
        if not self._is_one_video:
            return None
        return math.floor((time_s + 5e-4) * self.vision.config.tokens_per_second)

    @property
    def _is_one_video(self) -> bool:
        return self.patch_frames > 1

    def project(
        self, encoded: Encoded, pixels_shape: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, int], dict[str, Tensor]]:
        rows, cols = self.vision.patches(pixels_shape)
        grid = (rows // self.vision.merge, cols // self.vision.merge)
        return self.vision.project(encoded.hidden), grid, {}
