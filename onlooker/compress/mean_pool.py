"""One token a frame, the mean of all: the least a frame can be, and the untrained control of one-token carriers.

VideoScan (arXiv 2503.09387) trains one carrier token to stand for a frame; this is what the same budget gives without
training.
"""

from dataclasses import dataclass

import torch

from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class MeanPool(Compressor):
    """The average token, at the frame's first place."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """All tokens merged into one."""
        return tokens.merge(torch.zeros(len(tokens), dtype=torch.int64, device=tokens.features.device))
