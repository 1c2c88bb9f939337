"""Rotary positions applied to raw queries and keys: once, in float32, never written back over the raw ones."""

from collections.abc import Callable

import torch
from torch import Tensor

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions int64 `[axes, tokens]` to cosines and sines, float32 `[tokens, head_dim]` each."""


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[..., tokens, head_dim]` by cosines and sines `[tokens, head_dim]` (half-split layout)."""
    half = states.shape[-1] // 2
    plain = states.float()
    turned = torch.cat((-plain[..., half:], plain[..., :half]), dim=-1)
    return (plain * cos + turned * sin).to(states.dtype)


def shifted(positions: list[Tensor], offsets: list[int]) -> Tensor:
    """Local positions of several blocks, each `[axes, tokens]`, moved by one integer per block; `[axes, all tokens]`.

    Moving a block moves all axes alike, so its inner geometry stays.
    """
    if len(positions) == 1:
        # The prefix, at every frame of a sliding window: no upload, which would wait for the device.
        return positions[0] + offsets[0]
    moved = torch.cat(positions, dim=1)
    counts = torch.tensor([p.shape[1] for p in positions])
    steps = torch.repeat_interleave(torch.tensor(offsets), counts)
    return moved + steps.to(moved.device)
