"""Windows in which as much as possible stands still, found at once for a whole clip (HoliTom, its vision part).

Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025 (arXiv 2505.21334).
A clip is divided so that the places that stand still over whole parts, times their lengths, are as many as possible (by
dynamic programming). A place that stands still over a part, neighbouring cosines all above `tau`, becomes one token,
its mean, in the part's first frame. What is left is brought to the budget with one ratio for all: of the moving tokens
of each frame the most salient, of the static ones dense centres, each 0.6 of itself and 0.4 of the mean of those
nearest to it. Changed:

- the clip is a window of the stream, and static tokens keep a place (there they come first, re-numbered);
- the stage inside the language model, which merges by a question's attention, is left out: a stream is read once for
  all questions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._blending import blended
from onlooker.compress._clip import ClipMethod, ClipState, merged_into
from onlooker.compress._density import centres_of, density_scores, mean_of_members
from onlooker.core.tokens import VisualTokens

BETA = 0.6
"""Share of a merged token that is its centre's."""


@dataclass(frozen=True)
class HoliTom(ClipMethod):
    """Temporal merging by dynamic programming, then saliency and density."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    tau: float = 0.8
    """Cosine of neighbouring frames above which a place stands still (0.65 for budgets of a tenth)."""

    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """Static tokens of each part, moving ones of each frame, at the budget."""
        x = tokens.features.detach().float().unflatten(0, (frames, -1))
        count = x.shape[1]
        steps = in_steps(cosine_similarity(x[1:], x[:-1], dim=-1)) > in_steps(torch.tensor(self.tau, device=x.device))
        itself = torch.arange(frames * count, device=x.device).view(frames, count)
        still, owner = torch.zeros_like(itself, dtype=torch.bool), itself.clone()
        for first, end in parts(steps):
            if end - first > 1:
                still[first:end] = steps[first : end - 1].all(0)
                owner[first:end] = torch.where(still[first:end], itself[first], itself[first:end])
        flat = owner.flatten()
        owns = owner == itself
        averaged = merged_into(tokens, flat)
        share = self.keep_ratio * frames * count / owns.sum()
        salient = in_steps(tokens.extras["saliency"].detach().float().view(frames, -1) * count)
        moving = ~still
        dominant = among_best(salient.masked_fill(still, -1), _shares(moving, share)) & moving
        dense = tokens.features.detach().float().clone()
        dense[owns.flatten().nonzero()[:, 0]] = averaged.features.float()
        static = owns & still
        centre, nearest = centres_of(*density_scores(dense.unflatten(0, (frames, -1)), static), _shares(static, share))
        return _given(averaged, owns, nearest, static & ~centre, dominant | centre)


def parts(steps: Tensor) -> list[tuple[int, int]]:
    """The division of a clip into parts, as first frame and the one behind the last, of the greatest gain: places that
    are the same in all steps of a part (bool `[frames - 1, tokens]`), times its number of steps."""
    frames = len(steps) + 1
    same = [steps[first:].int().cumprod(0).sum(1) for first in range(frames - 1)]
    table = [row.tolist() for row in torch.nn.utils.rnn.pad_sequence(same)] if same else []
    best, since = [0], [0]
    for end in range(1, frames + 1):
        gains = []
        for first in range(end):
            length = end - 1 - first
            gains.append(best[first] + (table[length - 1][first] * length if length else 0))
        since.append(max(range(end), key=lambda first, gains=gains: (gains[first], -first)))
        best.append(gains[since[-1]])
    found, end = [], frames
    while end:
        found.append((since[end], end))
        end = since[end]
    return found[::-1]


def _shares(among: Tensor, share: Tensor) -> Tensor:
    """So much of the tokens of each frame, rounded down, one at least where there are some; `[frames]`."""
    there = among.sum(1)
    return torch.minimum((there * share.clamp_max(1) + 1e-6).long().clamp_min(1), there)


def _given(averaged: VisualTokens, owns: Tensor, nearest: Tensor, joined: Tensor, kept: Tensor) -> VisualTokens:
    """Kept tokens of those that own themselves, of which static centres take in the tokens nearest to them."""
    frames, count = owns.shape
    places = owns.flatten().nonzero()[:, 0]
    lost = torch.zeros(frames, count, device=nearest.device)
    _, number = mean_of_members(lost, nearest, joined)
    weight = torch.zeros(frames * count, device=nearest.device)
    weight[places] = averaged.weight
    gained, _ = mean_of_members(weight.view(frames, count), nearest, joined)
    total = (weight + (gained * number).flatten())[places]
    takes = (number.flatten() > 0)[places]

    def blend(value: Tensor) -> Tensor:
        grid = value.new_zeros(frames * count, *value.shape[1:])
        grid[places] = value
        mean, _ = mean_of_members(grid.unflatten(0, (frames, count)), nearest, joined)
        mixed = BETA * value + (1 - BETA) * mean.flatten(0, 1)[places]
        return torch.where(takes.view(-1, *[1] * (value.ndim - 1)), mixed, value)

    return blended(averaged, kept.flatten()[places].nonzero()[:, 0], total, blend)
