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

from onlooker.compress._batching import STEPS, among_best, in_steps
from onlooker.compress._blending import taken_over
from onlooker.compress._clip import ClipMethod, SteppedWindows, averaged
from onlooker.compress._density import centres_of, density_scores
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept, masked
from onlooker.compress._still import divided, stands_still
from onlooker.core.tokens import VisualTokens
from onlooker.kernels.groups import Groups

BETA = 0.6
"""Share of a merged token that is its centre's."""


@dataclass(frozen=True)
class HoliTom(SteppedWindows, ClipMethod):
    """Temporal merging by dynamic programming, then saliency and density."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    tau: float = 0.8
    """Cosine of neighbouring frames above which a place stands still (0.65 for budgets of a tenth)."""

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Static tokens of each part, moving ones of each frame, at the budget."""
        x = tokens.features.detach().unflatten(0, (streams * frames, -1))
        count, each = x.shape[1], x.unflatten(0, (streams, frames))
        steps = likeness(each[:, 1:].reshape(-1, *x.shape[1:]), each[:, :-1].reshape(-1, *x.shape[1:]))
        steps = (in_steps(steps) > round(self.tau * STEPS)).view(streams, frames - 1, count)
        parts = divided(steps)
        itself = torch.arange(len(x) * count, device=x.device).view(len(x), count)
        still = stands_still(steps, parts)
        owner = torch.where(still, itself[parts.first], itself)
        own = owner == itself
        owned = own.view(streams, -1).sum(1)
        share = (self.keep_ratio * frames * count / owned).repeat_interleave(frames, output_size=len(x))
        static = own & still
        whole = averaged(tokens, owner.flatten())
        salient = in_steps(tokens.extras["saliency"].detach().float().view(len(x), -1) * count)
        dominant = among_best(salient.masked_fill(still, -1), _shares(~still, share)) & ~still
        scores = density_scores(whole.features.detach().view(x.shape), static)
        centre, nearest = centres_of(*scores, _shares(static, share))
        return _given(whole, nearest, static & ~centre, dominant | centre, streams)


def _shares(among: Tensor, share: Tensor) -> Tensor:
    """So much of the tokens of each frame, rounded down, one at least where there are some; `[frames]`."""
    there = among.sum(1)
    return torch.minimum((there * share.clamp_max(1) + 1e-6).long().clamp_min(1), there)


def _given(whole: VisualTokens, nearest: Tensor, joined: Tensor, kept: Tensor, windows: int) -> Kept:
    """Kept tokens of each window, of which static centres take in the tokens nearest to them."""
    first = torch.arange(0, len(whole), nearest.shape[1], device=nearest.device)[:, None]
    groups = Groups.of(nearest + first, joined)
    own = torch.full_like(whole.weight, BETA)
    standing = whole.weight + groups.sums(whole.weight)
    found = taken_over(whole, groups, own, groups.length > 0, standing, weighed=False)
    return masked(found, kept.view(windows, -1))
