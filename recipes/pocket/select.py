"""Which visual tokens a training batch keeps: by chance, exactly as STC-Pruner chooses, or by ground truth."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.compress import Uniform
from onlooker.core.tokens import VisualTokens

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


@cache
def lattices(side: int, device: torch.device) -> Tensor:
    """Which tokens of a grid the compressor `uniform` keeps, bool `[count, tokens]` for every count from 0 on."""
    tokens = VisualTokens.of_frame(torch.zeros(side * side, 1), (side, side), 0, 0.0)
    masks = torch.zeros(side * side + 1, side * side, dtype=torch.bool)
    for count in range(1, side * side + 1):
        chooser = Uniform(keep=count)
        masks[count, chooser.compress(tokens, chooser.new_state()).slot] = True
    return masks.to(device)


def covered(owner: Tensor, tokens: int) -> Tensor:
    """Share of each visual token's square that shows things, float `[clips, frames, tokens]`; `owner` is that of
    `rasterise`."""
    side = owner.shape[-1] // round(tokens**0.5)
    cover = F.avg_pool2d((owner >= 0).flatten(0, 1)[:, None].float(), side).flatten(1)
    return cover.unflatten(0, owner.shape[:2])


@torch.no_grad()
def choose_tokens(
    features: Tensor, counts: Tensor, generator: torch.Generator, named: bool, cover: Tensor | None = None
) -> Tensor:
    """Tokens kept, bool `[clips, frames, tokens]`, `counts` of each frame.

    `named`: exactly as STC-Pruner chooses. With `cover`, float `[clips, frames, tokens]`: those that show most of
    things, and others by chance. Else half of the clips keep a random set in every frame, and half those that `uniform`
    keeps.
    """
    clips, frames, tokens, _ = features.shape
    if named or cover is not None:
        rank_by = sum(dual_anchor(features))
        if cover is not None:
            rank_by = cover + 1e-6 * torch.rand(cover.shape, generator=generator, device=cover.device)
        return rank_by.argsort(2, descending=True).argsort(2) < counts[..., None]
    draw = {"generator": generator, "device": features.device}
    at_random = torch.rand(clips, frames, tokens, **draw).argsort(2).argsort(2) < counts[..., None]
    evenly = lattices(round(tokens**0.5), features.device)[counts]
    return torch.where(torch.rand(clips, 1, 1, **draw) < 0.5, at_random, evenly)
