"""One carrier token a frame, untrained: VideoScan's budget without its training.

"VideoScan: Enabling Efficient Streaming Video Understanding via Frame-level Semantic Carriers" (arXiv 2503.09387) puts
the mean of a frame's tokens behind them, and trains the model under a mask in which whatever comes later sees of the
frame that token only. Here nothing is trained, and the language model reads the mean alone: what it cannot take from
it shows what the training is for. Beside `mean_pool` it lies at the frame's last place, where the carrier would.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._steps import Kept
from onlooker.compress.mean_pool import MeanPool
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Carrier(MeanPool):
    """The average token, at the frame's last place."""

    realises: ClassVar[tuple[str, ...]] = ("videoscan",)

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """All tokens of each frame merged into one, where the last of them was."""
        merged = super().step(tokens, streams, frames, past).tokens
        last = (torch.arange(streams, device=tokens.row.device) + 1) * (len(tokens) // streams) - 1
        return Kept(replace(merged, row=tokens.row[last], col=tokens.col[last]))
