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

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._batching import STEPS, in_steps
from onlooker.compress._clip import ClipMethod, Parts, SteppedWindows, averaged, merged_into
from onlooker.compress._density import centres_of, density_scores
from onlooker.compress._likeness import likenesses
from onlooker.compress._steps import Kept
from onlooker.core.tokens import VisualTokens

CLUSTERS = 0.25
"""Clusters in a frame."""
FEW = 14
"""Up to so many tokens are not merged within a picture."""


@dataclass(frozen=True)
class PruneVid(SteppedWindows, ClipMethod):
    """Stage 1: merging over time, then within pictures."""

    keep_ratio: float = 0.5
    """Share of the static tokens of a scene, and of the moving ones of each frame, that is left, in (0, 1]."""
    static: float = 0.8
    """Mean cosine of a place's tokens above which it stands still."""

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The centres of what stands still, and of what moves."""
        x = tokens.features.detach().unflatten(0, (streams * frames, -1))
        count = x.shape[1]
        itself = torch.arange(len(tokens), device=x.device).view(len(x), count)
        parts = scenes(x.mean(1, dtype=torch.float32).unflatten(0, (streams, -1)))
        still = self._still(x.unflatten(0, (streams, -1)), parts)
        owner = torch.where(still, itself[parts.first], itself)
        owner = merged_around_centres(tokens, owner, still, self.keep_ratio)
        return merged_into(tokens, owner, streams)

    def _still(self, x: Tensor, parts: Parts) -> Tensor:
        """Places that stand still over their scene, bool `[windows * frames, tokens]`; `x` is `[windows, frames,
        tokens, dim]`."""
        windows, frames, count = x.shape[:3]
        each = x.transpose(1, 2).reshape(windows * count, frames, -1)
        number, length = parts.number.view(windows, frames), parts.length
        together = (number[:, :, None] == number[:, None, :]).float()
        others = together * (1 - torch.eye(frames, device=x.device))
        # Of every frame with the others of its scene, and then over the frames of the scene.
        alike = (likenesses(each, each).unflatten(0, (windows, count)) * others[:, None]).sum(3)
        pairs = (alike[:, :, None] * together[:, None]).sum(3).transpose(1, 2).flatten(0, 1)
        pairs = pairs / (length * (length - 1)).clamp_min(1)[:, None]
        return (in_steps(pairs) > round(self.static * STEPS)) & (length > 1)[:, None]


def scenes(means: Tensor) -> Parts:
    """Frames of one cluster in a row, of windows by their frames' means (`[windows, frames, dim]`)."""
    windows, frames = means.shape[:2]
    clusters = torch.full((windows,), max(1, round(frames * CLUSTERS)), device=means.device)
    _, nearest = centres_of(*density_scores(means, exact=True), clusters)
    return Parts.opened(torch.nn.functional.pad(nearest[:, 1:] != nearest[:, :-1], (1, 0)))


def merged_around_centres(tokens: VisualTokens, owner: Tensor, still: Tensor, share: float) -> Tensor:
    """The token that each one goes into, int64 `[tokens]`, once the static owners of each frame and the moving ones are
    merged around their dense centres. `owner` and `still` are `[frames, tokens]`."""
    frames, count = owner.shape
    flat = owner.flatten()
    itself = torch.arange(frames * count, device=flat.device)
    dense, owns = averaged(tokens, flat).features.detach().view(frames, count, -1), (flat == itself).view(frames, count)
    first = torch.arange(frames, device=flat.device)[:, None] * count
    into = itself.view(frames, count).clone()
    among = torch.cat([owns & still, owns & ~still])
    there = among.sum(1)
    wanted = torch.where(there <= FEW, there, (there * share).long().clamp_min(1))
    _, nearest = centres_of(*density_scores(dense, among), wanted)
    for some, centre in zip(among.chunk(2), nearest.chunk(2), strict=True):
        into = torch.where(some, centre + first, into)
    return into.flatten()[flat]
