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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import STEPS, among_best, apart, in_steps
from onlooker.compress._blending import blended
from onlooker.compress._clip import ClipMethod, ClipState, averaged
from onlooker.compress._density import centres_of, density_scores, mean_of_members
from onlooker.compress._likeness import likeness
from onlooker.core.tokens import VisualTokens

BETA = 0.6
"""Share of a merged token that is its centre's."""


@dataclass(frozen=True)
class HoliTom(ClipMethod):
    """Temporal merging by dynamic programming, then saliency and density."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    tau: float = 0.8
    """Cosine of neighbouring frames above which a place stands still (0.65 for budgets of a tenth)."""

    def clips(self, tokens: VisualTokens, frames: int, states: Sequence[ClipState]) -> list[VisualTokens]:
        """Static tokens of each part, moving ones of each frame, at the budget."""
        x = tokens.features.detach().unflatten(0, (len(states) * frames, -1))
        count = x.shape[1]
        alike = (in_steps(likeness(x[1:], x[:-1])) > round(self.tau * STEPS)).cpu()
        itself = torch.arange(len(x) * count).view(len(x), count)
        still, owner = torch.zeros_like(itself, dtype=torch.bool), itself.clone()
        shares = []
        for start in range(0, len(x), frames):
            steps = alike[start : start + frames - 1]
            for first, end in parts(steps):
                if end - first > 1:
                    here = slice(start + first, start + end)
                    still[here] = steps[first : end - 1].all(0)
                    owner[here] = torch.where(still[here], itself[start + first], itself[here])
            owned = (owner == itself)[start : start + frames].sum()
            shares += [self.keep_ratio * frames * count / owned] * frames
        static, share = (owner == itself) & still, torch.stack(shares)
        wanted = torch.stack([_shares(~still, share), _shares(static, share)]).to(x.device, non_blocking=True)
        still, static, owner = still.to(x.device), static.to(x.device), owner.to(x.device)
        whole = averaged(tokens, owner.flatten())
        salient = in_steps(tokens.extras["saliency"].detach().float().view(len(x), -1) * count)
        dominant = among_best(salient.masked_fill(still, -1), wanted[0]) & ~still
        centre, nearest = centres_of(*density_scores(whole.features.detach().view(x.shape), static), wanted[1])
        return _given(whole, nearest, static & ~centre, dominant | centre, len(states))


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


def _given(whole: VisualTokens, nearest: Tensor, joined: Tensor, kept: Tensor, windows: int) -> list[VisualTokens]:
    """Kept tokens of each window, of which static centres take in the tokens nearest to them."""
    gained, number = mean_of_members(whole.weight.view(joined.shape), nearest, joined)
    takes = number.flatten() > 0

    def blend(value: Tensor) -> Tensor:
        mean, _ = mean_of_members(value.unflatten(0, joined.shape), nearest, joined)
        mixed = BETA * value + (1 - BETA) * mean.flatten(0, 1)
        return torch.where(takes.view(-1, *[1] * (value.ndim - 1)), mixed, value)

    counts = kept.view(windows, -1).sum(1).tolist()
    place = kept.flatten().logical_not().byte().sort(stable=True).indices[: sum(counts)]
    return apart(blended(whole, place, whole.weight + (gained * number).flatten(), blend), counts)
