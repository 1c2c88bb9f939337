"""Make rendered frames look a little like decoded video: blur, coarse colour, coded blocks, noise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TO_LUMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
_FROM_LUMA = torch.linalg.inv(torch.tensor(_TO_LUMA, dtype=torch.float64)).tolist()


def _cosines() -> list[list[float]]:
    rows = [[math.cos((2 * x + 1) * u * math.pi / 16) / 2 for x in range(8)] for u in range(8)]
    rows[0] = [value / math.sqrt(2) for value in rows[0]]
    return rows


def draw_strengths(clips: int, generator: torch.Generator, plain_share: float = 0.35) -> Tensor:
    """How strongly each clip is spoiled, float32 `[clips, 4]` (blur, colour, blocks, noise); some clips not at all."""
    draw, used = torch.rand(2, clips, 4, generator=generator, device=generator.device)
    plain = torch.rand(clips, 1, generator=generator, device=generator.device) < plain_share
    return draw * (used < 0.5) * ~plain


def spoil(images: Tensor, strengths: Tensor) -> Tensor:
    """Frames uint8 `[frames, rows, cols, 3]` to pixels float32 `[frames, 3, rows, cols]` in -1..1.

    `strengths` is `[frames, 4]`; strength 0 leaves a frame as it is. Rows and cols must be multiples of 8.
    """
    rows, cols = images.shape[1:3]
    device = images.device
    x = images.permute(0, 3, 1, 2).float() / 255
    blur, colour, blocks, noise = (s[:, None, None, None] for s in strengths.unbind(1))
    to_luma = torch.tensor(_TO_LUMA, device=device)
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    y = torch.einsum("ij,njrc->nirc", to_luma, x + (smooth - x) * (0.8 * blur))
    coarse = F.interpolate(F.avg_pool2d(y[:, 1:], 2), scale_factor=2.0, mode="bilinear")
    y = torch.cat([y[:, :1], y[:, 1:] + (coarse - y[:, 1:]) * (colour > 0)], dim=1)
    # Blocks of 8 x 8 as rows of 64: the transform along both axes is one matrix.
    cut = y.view(len(y), 3, rows // 8, 8, cols // 8, 8).transpose(3, 4).flatten(4)
    cosines = torch.tensor(_cosines(), device=device)
    both = torch.kron(cosines, cosines)
    turned = cut @ both.T
    place = torch.arange(8, device=device)
    step = (0.02 + 0.02 * (place[:, None] + place).float()).flatten() * (0.1 + 1.4 * blocks[..., None])
    coded = (turned / step).round() * step
    # What is not coded is not transformed: the fast products of a GPU are not exact.
    cut = torch.where(blocks[..., None] > 0, coded @ both, cut)
    y = cut.unflatten(4, (8, 8)).transpose(3, 4).reshape_as(y)
    x = torch.einsum("ij,njrc->nirc", torch.tensor(_FROM_LUMA, device=device), y)
    x = x + torch.randn_like(x[:, :1]) * (0.03 * noise)
    return x.clamp(0, 1) * 2 - 1
