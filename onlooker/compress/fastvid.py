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
from torch.nn.functional import normalize

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._blending import blended
from onlooker.compress._clip import ClipMethod, ClipState, segments
from onlooker.compress._density import density_scores
from onlooker.core.tokens import VisualTokens

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
class FastVID(ClipMethod):
    """Density pruning on windows of a stream."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    alike: float = 0.9
    """Cosine of neighbouring frames below which a segment ends."""

    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """Salient tokens, and targets with what has joined them."""
        x = tokens.features.detach().float().unflatten(0, (frames, -1))
        count = x.shape[1]
        budget = max(1, int(count * self.keep_ratio + 1e-6))
        context = int(CONTEXT * budget)
        saliency = in_steps(tokens.extras["saliency"].detach().float().view(frames, -1) * count)
        salient = among_best(saliency, torch.full((frames,), budget - context, device=x.device))
        itself = torch.arange(frames * count, device=x.device)
        owner, target = itself.clone(), torch.zeros_like(salient)
        for first, end in segments(x.mean(1), round(frames * CUTS) + 1, self.alike):
            part = slice(first, end)
            dense = _targets(x[part], salient[part], context * (end - first))
            target[part] = dense
            if context:
                owner[first * count : end * count] = first * count + _joined(x[part].flatten(0, 1), dense.flatten())
        return _given(tokens, (salient | target).flatten(), owner)


def _targets(x: Tensor, salient: Tensor, budget: int) -> Tensor:
    """The densest of the other tokens of a segment's anchor frames, as many as the budget, bool `[frames, tokens]`."""
    frames = len(x)
    anchors = torch.arange(frames - 1, -1, -PERIOD, device=x.device).flip(0)
    score, _ = density_scores(x[anchors], ~salient[anchors], k=NEAREST)
    each = torch.full((len(anchors),), budget // len(anchors), device=x.device)
    each[: budget % len(anchors)] += 1
    found = torch.zeros_like(salient)
    found[anchors] = among_best(score, each) & (score >= 0)
    return found


def _joined(x: Tensor, target: Tensor) -> Tensor:
    """The target that each token of a segment is most like, int64 `[tokens]`; itself for targets."""
    itself = torch.arange(len(x), device=x.device)
    places = target.nonzero()[:, 0]
    if not len(places):
        return itself
    unit = normalize(x, dim=-1)
    nearest = places[in_steps(unit @ unit[places].T).argmax(1)]
    return torch.where(target, itself, nearest)


def _given(tokens: VisualTokens, kept: Tensor, owner: Tensor) -> VisualTokens:
    """Kept tokens, of which targets take in the mean of those that they own."""
    source = (~kept & kept[owner]).nonzero()[:, 0]
    into = owner[source]
    order, lengths = into.argsort(stable=True), into.bincount(minlength=len(owner))
    number = lengths.float()
    own = torch.maximum(1 / (number + 1), torch.full_like(number, LEAST_OWN))

    def blend(value: Tensor) -> Tensor:
        total = torch.segment_reduce(value[source[order]].contiguous(), "sum", lengths=lengths, unsafe=True)
        shape = (-1, *[1] * (value.ndim - 1))
        mean = total / number.clamp_min(1).view(shape)
        return own.view(shape) * value + (1 - own.view(shape)) * mean

    return blended(tokens, kept.nonzero()[:, 0], 1 + number, blend)
