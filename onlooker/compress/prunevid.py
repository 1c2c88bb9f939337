"""What stands still within a scene once, what moves in every frame, both merged around dense centres (PruneVid).

Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", Findings of ACL 2025 (arXiv
2412.16117), the stage before the language model. Frames are clustered by their mean tokens, a quarter as many clusters
as frames; frames of one cluster in a row are a scene. A place is static if its tokens in all frames of a scene are
alike, two by two, above `static` on average: they become one, their mean, in the scene's first frame. Of the static
tokens of a scene, and of the moving ones of each frame, `keep_ratio` dense centres are left, each the mean of the
tokens nearest to it; up to 14 tokens stay as they are. Changed:

- the clip is a window of the stream;
- a scene of one frame has no static places (there, the mean over no pairs is undefined);
- the stage inside the language model, which prunes by a question's attention, is left out: a stream is read once for
  all questions.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.compress._batching import in_steps
from onlooker.compress._clip import ClipMethod, ClipState, merged_into
from onlooker.compress._density import centres_of, density_scores
from onlooker.core.tokens import VisualTokens

CLUSTERS = 0.25
"""Clusters in a frame."""
FEW = 14
"""Up to so many tokens are not merged within a picture."""


@dataclass(frozen=True)
class PruneVid(ClipMethod):
    """Stage 1: merging over time, then within pictures."""

    keep_ratio: float = 0.5
    """Share of the static tokens of a scene, and of the moving ones of each frame, that is left, in (0, 1]."""
    static: float = 0.8
    """Mean cosine of a place's tokens above which it stands still."""

    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """The centres of what stands still, and of what moves."""
        x = tokens.features.detach().float().unflatten(0, (frames, -1))
        count = x.shape[1]
        itself = torch.arange(frames * count, device=x.device).view(frames, count)
        still, owner = torch.zeros_like(itself, dtype=torch.bool), itself.clone()
        for first, end in scenes(x.mean(1)):
            if end - first > 1:
                still[first:end] = self._still(x[first:end])
                owner[first:end] = torch.where(still[first:end], itself[first], itself[first:end])
        owner = merged_around_centres(tokens, owner, still, self.keep_ratio)
        return merged_into(tokens, owner)

    def _still(self, x: Tensor) -> Tensor:
        """Places that stand still over a scene `[frames, tokens, dim]`, bool `[tokens]`."""
        unit, frames = normalize(x, dim=-1), len(x)
        pairs = (unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))) / (frames * (frames - 1))
        return in_steps(pairs) > in_steps(torch.tensor(self.static, device=x.device))


def scenes(means: Tensor) -> list[tuple[int, int]]:
    """Frames of one cluster in a row, as first frame and the one behind the last."""
    clusters = torch.tensor([max(1, round(len(means) * CLUSTERS))], device=means.device)
    _, nearest = centres_of(*density_scores(means[None]), clusters)
    labels = nearest[0].tolist()
    edges = [0, *(n for n in range(1, len(labels)) if labels[n] != labels[n - 1]), len(labels)]
    return list(itertools.pairwise(edges))


def merged_around_centres(tokens: VisualTokens, owner: Tensor, still: Tensor, share: float) -> Tensor:
    """The token that each one goes into, int64 `[tokens]`, once the static owners of each frame and the moving ones are
    merged around their dense centres. `owner` and `still` are `[frames, tokens]`."""
    frames, count = owner.shape
    flat = owner.flatten()
    itself = torch.arange(frames * count, device=flat.device)
    features = tokens.features.detach().float().clone()
    features[(flat == itself).nonzero()[:, 0]] = merged_into(tokens, flat).features.float()
    dense, owns = features.unflatten(0, (frames, -1)), (flat == itself).view(frames, count)
    first = torch.arange(frames, device=flat.device)[:, None] * count
    into = itself.view(frames, count).clone()
    for among in (owns & still, owns & ~still):
        there = among.sum(1)
        wanted = torch.where(there <= FEW, there, (there * share).long().clamp_min(1))
        _, nearest = centres_of(*density_scores(dense, among), wanted)
        into = torch.where(among, nearest + first, into)
    return into.flatten()[flat]
