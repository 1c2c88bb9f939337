"""Salient tokens of every frame, and dense ones of anchor frames that take in the rest of a segment (FastVID).

Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025 (arXiv 2503.11187).
A clip is cut into segments where neighbouring frames differ. 60 % of a frame's budget are its most salient tokens. The
rest of a segment's budget goes to its anchor frames, every fourth one counted from its end: there the densest of the
other tokens (by their four nearest) are targets, every other token of the segment joins the target that it is most
like, and a target becomes 0.6 of itself and 0.4 of the mean of those (with one that joined: half and half is less, so
0.6 too). Changed:

- the clip is a window of the stream; there are seven cuts at least in 32 frames there, in proportion here;
- frames are compared by their mean token; there, by what the tower's pooling head makes of them;
- saliency is that of the tower's own last layer (see the models' pages), not of a second pass through a pooling head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._blending import taken_over
from onlooker.compress._clip import ClipMethod, Parts, SteppedWindows, segments
from onlooker.compress._density import density_scores
from onlooker.compress._likeness import likenesses
from onlooker.compress._steps import Kept, masked
from onlooker.core.tokens import VisualTokens
from onlooker.kernels.groups import Groups

PERIOD = 4
"""Frames from one anchor frame to the next."""
NEAREST = 4
"""Neighbours by which density is measured."""
CONTEXT = 0.4
"""Share of the budget for anchor frames."""
LEAST_OWN = 0.6
"""Share of a target that is at least its own."""
CUTS = 7 / 32
"""Cuts in a frame at least."""


@dataclass(frozen=True)
class FastVID(SteppedWindows, ClipMethod):
    """Density pruning on windows of a stream."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    alike: float = 0.9
    """Cosine of neighbouring frames below which a segment ends."""

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Salient tokens, and targets with what has joined them."""
        x = tokens.features.detach().unflatten(0, (streams * frames, -1))
        count = x.shape[1]
        budget = max(1, int(count * self.keep_ratio + 1e-6))
        context = int(CONTEXT * budget)
        saliency = in_steps(tokens.extras["saliency"].detach().float().view(len(x), -1) * count)
        salient = among_best(saliency, torch.full((len(x),), budget - context, device=x.device))
        parts = segments(x.mean(1, dtype=torch.float32), streams, round(frames * CUTS) + 1, self.alike)
        target, owner = torch.zeros_like(salient), torch.arange(len(tokens), device=x.device)
        if context:
            target = _targets(x, salient, parts, context)
            owner = _joined(x, target, parts, streams, context * frames)
        return _given(tokens, (salient | target).flatten(), owner, streams)


def _targets(x: Tensor, salient: Tensor, parts: Parts, context: int) -> Tensor:
    """The densest of the other tokens of the segments' anchor frames, `context` for each frame of a segment, bool
    `[frames, tokens]`."""
    behind = parts.first + parts.length - 1 - torch.arange(len(x), device=x.device)  # frames of the segment to come
    anchors = (parts.length + PERIOD - 1) // PERIOD
    dealt = context * parts.length
    each = dealt // anchors + (anchors - 1 - behind // PERIOD < dealt % anchors)
    score, _ = density_scores(x, ~salient, k=NEAREST)
    return among_best(score, each * (behind % PERIOD == 0)) & (score >= 0)


def _joined(x: Tensor, target: Tensor, parts: Parts, windows: int, most: int) -> Tensor:
    """The target of its segment that each token is most like, int64 `[frames * tokens]`; itself for targets, and where
    there is none. A window has `most` targets at most."""
    frames, count = target.shape
    part = parts.number[:, None].expand(-1, count).reshape(windows, -1)
    flat, of_window = x.unflatten(0, (windows, -1)).flatten(1, 2), target.view(windows, -1)
    place = of_window.logical_not().byte().sort(dim=1, stable=True).indices[:, :most]
    among = flat.gather(1, place[..., None].expand(-1, -1, flat.shape[2]))
    fits = (part[:, :, None] == part.gather(1, place)[:, None, :]) & of_window.gather(1, place)[:, None, :]
    best, nearest = in_steps(likenesses(flat, among)).masked_fill(~fits, -torch.inf).max(-1)
    itself = torch.arange(frames * count, device=x.device).view(windows, -1)
    joins = ~of_window & best.isfinite()
    return torch.where(joins, place.gather(1, nearest) + itself[:, :1], itself).flatten()


def _given(tokens: VisualTokens, kept: Tensor, owner: Tensor, windows: int) -> Kept:
    """Kept tokens of each window, of which targets take in the mean of those that they own."""
    groups = Groups.of(owner, ~kept & kept[owner])
    number = groups.length.float()
    own = (1 / (number + 1)).clamp_min(LEAST_OWN)
    found = taken_over(tokens, groups, own, number > 0, 1 + number, weighed=False)
    return masked(found, kept.view(windows, -1))
