"""What a tower can tell of its tokens besides their features, computed on request only: saliency and global rows.

Saliency is the attention that a token receives in the last layer in which every token sees every other: of the class
token where the tower has one (VisionZip, arXiv 2412.04467, section 3.2; there of the layer whose output is used, which
is the same), else of all tokens, mean over heads and queries (the same for SigLIP; FastVID and FlashVID do so for
Qwen). It is the attention over what an encoder accelerator made of the frame: the layer's queries and keys are computed
again from the hidden states that entered it, so that it needs one tap and nothing of the encoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GLOBAL = "global"
"""Rows `[streams, rows, hidden_dim]` about the whole frame, in the language model's space."""
PIXELS = "pixels"
"""The picture under each token, uint8 `[streams, tokens, frames * 3 * SIDE * SIDE]`."""
SIDE = 28
"""Pixels along a token's side in it: those of Qwen2.5-VL, at whose size nothing is resampled."""
SALIENCY = "saliency"
"""How much attention a token gets, float32 `[streams, tokens]`."""


def attention_received(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Mean over heads and queries of the attention that every key gets, float32 `[streams, keys]`.

    Heads are apart: `[streams, tokens, heads, head_dim]`. One head at a time, so that no more than a square of tokens
    is there at once.
    """
    total = torch.zeros(keys.shape[:2], dtype=torch.float32, device=keys.device)
    for head in range(keys.shape[2]):
        weights = torch.bmm(queries[:, :, head], keys[:, :, head].transpose(1, 2)).float() * scale
        total += weights.softmax(-1).mean(1)
    return total / keys.shape[2]


def pictures_under(pixels: Tensor, scale: tuple[Sequence[float], Sequence[float]], grid: tuple[int, int]) -> Tensor:
    """The picture under each token of a grid, in raster order: what the tower was given (`[streams, frames * 3, rows,
    cols]`, colours less a mean and divided by a deviation), at `SIDE` pixels a token. See `PIXELS`."""
    mean, std = (torch.tensor(part, device=pixels.device)[:, None, None] for part in scale)
    frames = pixels.float().unflatten(1, (-1, 3)) * std + mean
    pictures = frames.flatten(1, 2)
    wanted = (grid[0] * SIDE, grid[1] * SIDE)
    if tuple(pictures.shape[2:]) != wanted:
        pictures = F.interpolate(pictures, size=wanted, mode="bilinear", antialias=True)
    parts = pictures.unflatten(3, (grid[1], SIDE)).unflatten(2, (grid[0], SIDE)).permute(0, 2, 4, 1, 3, 5)
    return (parts.flatten(3).flatten(1, 2) * 255).round().clamp(0, 255).byte()


def last_attending(layers: Sequence[Any]) -> int | None:
    """The last layer in which every token sees all others, and into which an earlier layer's output goes; None: there
    is none."""
    seeing = [number for number, layer in enumerate(layers) if number and layer.sees_all]
    return seeing[-1] if seeing else None
