"""Rotary positions applied to raw queries and keys: once, in float32, never written back over the raw ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from onlooker.kvstore.blocks import Offset

Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions int64 `[axes, tokens]` to cosines and sines, float32 `[tokens, head_dim]` each."""


def rotate(states: Tensor, cos: Tensor, sin: Tensor, into: Tensor | None = None) -> Tensor:
    """Rotate `[..., tokens, head_dim]` by cosines and sines `[tokens, head_dim]` (half-split layout), perhaps `into` a
    tensor like it."""
    half = states.shape[-1] // 2
    plain = states.float()
    turned = torch.cat((-plain[..., half:], plain[..., :half]), dim=-1)
    if into is not None:
        return torch.add(plain * cos, turned * sin, out=into)
    return (plain * cos + turned * sin).to(states.dtype)


def moved(positions: Tensor, offset: Offset) -> Tensor:
    """Local positions of one block, `[axes, tokens]`, moved by one integer per axis, so that its inner geometry stays.

    Without any upload, which would wait for the device: the prefix moves at every frame of a sliding window.
    """
    if min(offset) == max(offset):
        return positions + offset[0]
    return torch.stack([axis + step for axis, step in zip(positions, offset, strict=True)])


def shifted(positions: list[Tensor], offsets: list[Offset]) -> Tensor:
    """Local positions of several blocks, each `[axes, tokens]`, moved by their offsets; `[axes, all tokens]`."""
    if len(positions) == 1:
        return moved(positions[0], offsets[0])
    together = torch.cat(positions, dim=1)
    counts = torch.tensor([p.shape[1] for p in positions])
    steps = torch.repeat_interleave(torch.tensor(offsets).T, counts, dim=1)
    if together.is_cuda:
        steps = steps.pin_memory()  # so that the copy is not waited for
    return together + steps.to(together.device, non_blocking=True)
