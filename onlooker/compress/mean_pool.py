"""One token a frame, the mean of all: the least a frame can be, and the untrained control of one-token carriers.

VideoScan (arXiv 2503.09387) trains one carrier token to stand for a frame; this is what the same budget gives without
training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._steps import Kept, Stepped
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class MeanPool(Stepped):
    """The average token, at the frame's first place."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """All tokens of each frame merged into one."""
        group = torch.arange(streams, device=tokens.features.device)[:, None].expand(-1, len(tokens) // streams)
        return Kept(tokens.merge(group.flatten(), streams))
