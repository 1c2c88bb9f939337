"""Qwen3-VL: learned and rotary positions in the tower, DeepStack rows, and the time of each frame as text.

Qwen Team, "Qwen3-VL Technical Report", arXiv 2511.21631; DeepStack: Meng et al., arXiv 2406.04334; weights and code
through Transformers 5. Every patch in time is a video of its own, between marks and behind its time, which is the mean
of its two frames'; the library's processor leaves a pair of marks around all of them besides, which is not followed
(its own template and the model's report have none). With `pairs=False` a frame is its own patch (see `_qwen`).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import Attention, Encoded
from onlooker.models._qwen import QwenVideoModel
from onlooker.models._qwen_vision import QwenVision

MODEL_TYPE = "qwen3_vl"
DEEPSTACK = "deepstack"
"""Name of the token extra: rows that enter the first language layers, `[tokens, levels, hidden_dim]`."""


class Vision(QwenVision):
    """The tower of a `Qwen3VLForConditionalGeneration` and its mergers."""

    def added_to_patches(self, rows: int, cols: int) -> Tensor:
        """The learned square of positions, stretched to the frame's shape (corner on corner), in float32."""
        table = self.module.pos_embed.weight
        side = round(len(table) ** 0.5)
        square = table.float().view(side, side, -1).permute(2, 0, 1)[None]
        stretched = F.interpolate(square, size=(rows, cols), mode="bilinear", align_corners=True)
        return self.to_blocks(stretched[0].permute(1, 2, 0))

    @property
    def tap_layers(self) -> tuple[int, ...]:
        return tuple(self.config.deepstack_visual_indexes)

    def project(self, hidden: Tensor) -> Tensor:
        """Tower output `[streams, tokens, dim]` to language tokens `[streams, tokens / 4, hidden_dim]`."""
        return self.merged(hidden, self.module.merger)

    def deepstack(self, taps: Mapping[int, Tensor]) -> Tensor:
        """Tapped layers to the rows of each token, `[streams, tokens / 4, levels, hidden_dim]`."""
        mergers = zip(self.tap_layers, self.module.deepstack_merger_list, strict=True)
        return torch.stack([self.merged(taps[layer], merger) for layer, merger in mergers], dim=2)


class Qwen3VL(QwenVideoModel):
    """A Qwen3-VL checkpoint."""

    model_type = MODEL_TYPE
    network_class = "Qwen3VLForConditionalGeneration"
    vision_class = Vision
    bounded_frames = 2  # of a clip's volume, the least clip's share
    vision: Vision
    offers = frozenset({"timestamps", DEEPSTACK})
    language_extras = frozenset({DEEPSTACK})

    def project(
        self, encoded: Encoded, pixels_shape: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, int], dict[str, Tensor]]:
        rows, cols = self.vision.patches(pixels_shape)
        grid = (rows // self.vision.merge, cols // self.vision.merge)
        rows_of = {DEEPSTACK: self.vision.deepstack(encoded.taps)} if self.vision.tap_layers else {}
        return self.vision.project(encoded.hidden), grid, rows_of

    def frame_ids(self, time_s: float) -> list[int]:
        return [*self._prompt.text_ids(f"<{time_s:.1f} seconds>"), *super().frame_ids(time_s)]

    def extend(self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        if self._arithmetic != "model":
            return super().extend(embeddings, attention, extras)
        return self._layers.extend(embeddings, attention, (extras or {}).get(DEEPSTACK))

    def begin_lean(
        self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        return self.lean.begin(embeddings, attention, (extras or {}).get(DEEPSTACK))
