"""What happened to the tokens of one frame."""

from dataclasses import dataclass

import numpy as np
import torch

from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Trace:
    """What happened to the tokens of one frame, for drawing it."""

    time_s: float
    recomputed: np.ndarray
    """Share of the tower's layers in which each patch was computed anew, float32 `[patch rows, patch cols]`."""
    kept: np.ndarray
    """Which tokens entered the language model, bool `[token rows, token cols]`."""
    refreshed: bool
    gist: np.ndarray | None = None
    """Mean of the tokens that entered the language model, weighted by what they stand for, float32 `[hidden_dim]`; None
    where none did."""

    def of_skipped(self, time_s: float) -> "Trace":
        """Of a frame of that size that the gate skipped: nothing was recomputed, nothing kept."""
        return Trace(time_s, np.zeros_like(self.recomputed), np.zeros_like(self.kept), False)


def as_trace(
    time_s: float, recomputed: torch.Tensor, kept: torch.Tensor, refreshed: bool, tokens: VisualTokens | None
) -> Trace:
    """A `Trace` from device tensors (waits for the device); `tokens` are those that were kept."""
    gist = None
    if tokens is not None and len(tokens):
        share = tokens.weight / tokens.weight.sum()
        gist = (tokens.features.float() * share[:, None]).sum(0).cpu().numpy()
    return Trace(time_s, recomputed.float().cpu().numpy(), kept.cpu().numpy(), refreshed, gist)
