"""Which visual tokens a training batch keeps: many patterns, so that any pruner's choice is familiar."""

import torch
import torch.nn.functional as F
from torch import Tensor

PAST = 16
"""Frames that make up STC-Pruner's past."""


def draw_counts(clips: int, frames: int, most: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Tokens to keep, int64 `[clips, frames]`, none above `most`.

    With `most` = `tokens` all are kept. Else half of the clips keep `most` in every frame, a quarter a smaller
    number, and a quarter a number that changes from frame to frame, as budgets that follow the content do.
    """
    device = generator.device

    def shares(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    counts = torch.full((clips, frames), most, device=device)
    if most == tokens:
        return counts
    least = max(1, tokens // 8)
    draw = shares(clips, 1)
    smaller = least + (shares(clips, 1) * (most - least)).long().clamp(min=0)
    changing = least // 2 + (shares(clips, frames) ** 2 * (most - least // 2)).long()
    counts = torch.where(draw < 0.25, smaller.expand_as(counts), counts)
    return torch.where(draw > 0.75, changing, counts).clamp(1, most)


def dual_anchor(features: Tensor) -> tuple[Tensor, Tensor]:
    """STC-Pruner's two terms, `[clips, frames, tokens]` each: how unlike the frame's mean token, and the past's."""
    wide = features.float()
    means = wide.mean(2)
    # The past is the last `PAST` frames; the first frame stands in for its own.
    frame = torch.arange(means.shape[1], device=means.device)
    sums = F.pad(means.cumsum(1), (0, 0, 1, 0))
    past = (sums[:, :-1] - sums[:, (frame - PAST).clamp(min=0)]) / frame.clamp(1, PAST)[:, None]
    past = torch.cat([means[:, :1], past[:, 1:]], dim=1)
    anchors = torch.stack([means, past], dim=2)
    alike = F.normalize(wide, dim=-1) @ F.normalize(anchors, dim=-1).mT
    return 1 - alike[..., 0], 1 - alike[..., 1]


@torch.no_grad()
def choose_tokens(
    features: Tensor, counts: Tensor, things: Tensor, generator: torch.Generator, pruner_share: float
) -> Tensor:
    """Tokens kept, bool `[clips, frames, tokens]`, `counts` of each frame.

    `things` bool `[clips, frames, tokens]` marks tokens of patches that show something. Each clip draws one way:
    exactly as STC-Pruner does (`pruner_share` of the clips); of the rest, a tenth a random set for every frame, a tenth
    a block that wanders over the grid, three tenths things first, and half scores like those of pruners (unlike the
    frame's mean, unlike the past's mean, unlike the frame before) with some noise. Chance is kept rare on purpose: a
    tower that sees much of it spreads the picture over all tokens, and then no choice of tokens matters.
    """
    clips, frames, tokens, _ = features.shape
    device = features.device
    noise = torch.rand(clips, frames, tokens, generator=generator, device=device)
    way = torch.rand(clips, 1, 1, generator=generator, device=device)
    mix = torch.rand(clips, 1, 1, 3, generator=generator, device=device)
    side = round(tokens**0.5)
    place = torch.arange(side, device=device, dtype=torch.float32)
    centre = torch.rand(clips, 1, 2, generator=generator, device=device)
    centre = centre + 0.15 * torch.rand(clips, frames, 2, generator=generator, device=device)
    down, across = (centre * (side - 1))[..., None].unbind(2)
    block = -torch.maximum((place.repeat_interleave(side) - down).abs(), (place.repeat(side) - across).abs())

    unit = F.normalize(features.float(), dim=-1)
    before = torch.cat([unit[:, :1], unit[:, :-1]], dim=1)
    space, past = dual_anchor(features)
    unlike = torch.stack([space, past, 1 - (unit * before).sum(-1)], dim=-1)
    unlike = unlike / unlike.mean(2, keepdim=True).clamp(min=1e-4)
    score = (unlike * mix).sum(-1) + 0.5 * noise * mix[..., 0]
    other = (way - pruner_share) / max(1 - pruner_share, 1e-6)
    rank_by = torch.where(other < 0.5, score, things + noise)
    rank_by = torch.where((other >= 0.8) & (other < 0.9), block + 0.01 * noise, rank_by)
    rank_by = torch.where(other >= 0.9, noise, rank_by)
    rank_by = torch.where(other < 0, space + past, rank_by)
    rank = rank_by.argsort(2, descending=True).argsort(2)
    return rank < counts[..., None]
