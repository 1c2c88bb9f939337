"""One token a frame, the mean of all: the least a frame can be, and the untrained control of one-token carriers.

VideoScan (arXiv 2503.09387) trains one carrier token to stand for a frame; this is what the same budget gives without
training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from onlooker.compress._batching import Batched, alike, apart, together
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class MeanPool(Batched):
    """The average token, at the frame's first place."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """All tokens of each frame merged into one."""
        kept = list(batch)
        for members in alike(batch):
            flat, size = together(batch, members), len(batch[members[0]])
            group = torch.arange(len(members), device=flat.features.device).repeat_interleave(
                size, output_size=len(members) * size
            )
            merged = flat.merge(group, len(members))
            for i, out in zip(members, apart(merged, [1] * len(members)), strict=True):
                kept[i] = out
        return kept
