"""What happened to the tokens of one frame."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Trace:
    """What happened to the tokens of one frame, for drawing it."""

    time_s: float
    recomputed: np.ndarray
    """Share of the tower's layers in which each patch was computed anew, float32 `[patch rows, patch cols]`."""
    kept: np.ndarray
    """Which tokens entered the language model, bool `[token rows, token cols]`."""
    refreshed: bool

    def of_skipped(self, time_s: float) -> "Trace":
        """Of a frame of that size that the gate skipped: nothing was recomputed, nothing kept."""
        return Trace(time_s, np.zeros_like(self.recomputed), np.zeros_like(self.kept), False)


def as_trace(time_s: float, recomputed: torch.Tensor, kept: torch.Tensor, refreshed: bool) -> Trace:
    """A `Trace` from device tensors (waits for the device)."""
    return Trace(time_s, recomputed.float().cpu().numpy(), kept.cpu().numpy(), refreshed)
