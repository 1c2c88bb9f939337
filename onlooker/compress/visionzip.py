"""The tokens that the tower looks at most, and a few that stand for the rest (VisionZip).

Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025 (arXiv 2412.04467),
section 3.2. Most of the budget (54 in 64) goes to the tokens with the highest saliency. Of the others, every so
many-th is a target; each of the rest joins the target that it is most like, and a target becomes itself plus the mean
of those that joined. Changed:

- likeness is that of the tokens that enter the language model, not of the tower's keys (heads averaged);
- tokens stay in raster order, and a merged one at its target's place; the code puts the dominant ones first;
- CLIP's class token is not added to them, as in LLaVA-OneVision's own use of the tower;
- `average`: the mean of target and joined, weighted by how many there are, as the sum doubles a token's length.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._blending import blended_flat
from onlooker.compress._density import mean_of_members
from onlooker.compress._keep import Budgeted
from onlooker.compress._likeness import likenesses
from onlooker.compress._steps import Kept, Stepped
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

DOMINANT = 54 / 64
"""Share of the budget for the tokens that are looked at most."""


@dataclass(frozen=True)
class VisionZip(Budgeted, Stepped):
    """Dominant and contextual tokens of one frame."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    average: bool = False
    """A contextual token is the mean of what it stands for; otherwise, as published, a sum."""

    def new_state(self) -> StreamState:
        """Nothing to remember: every frame is by itself."""
        return StreamState()

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Dominant tokens, and targets with what has joined them."""
        features = tokens.features.detach().unflatten(0, (streams, -1))
        keep = self.num_kept(features.shape[1])
        if keep == features.shape[1]:
            return Kept(tokens)
        saliency = tokens.extras["saliency"].detach().float().view(streams, -1)
        taken, owner, joined = _dealt(features, saliency, keep)
        _, number = mean_of_members(saliency, owner, joined)
        order = (~taken).byte().sort(dim=1, stable=True).indices[:, :keep]

        def blend(value: Tensor) -> Tensor:
            mean, _ = mean_of_members(value, owner, joined)
            count = number.view(*number.shape, *[1] * (value.ndim - 2))
            return (value + mean * count) / (1 + count) if self.average else value + mean

        return Kept(blended_flat(tokens, order, 1 + number, blend))


def _dealt(features: Tensor, saliency: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are kept, the target that every token belongs to, and which have joined one; all
    `[streams, tokens]`."""
    streams, count = saliency.shape
    dominant = min(keep, max(1, round(keep * DOMINANT)))
    # Saliency is small, and told apart by its share of the highest.
    share = in_steps(saliency / saliency.amax(1, keepdim=True).clamp_min(1e-12))
    looked_at = among_best(share, torch.full((streams,), dominant, device=saliency.device))
    rest = looked_at.byte().sort(dim=1, stable=True).indices[:, : count - dominant]
    targets = rest[:, :: max(1, rest.shape[1] // max(1, keep - dominant))][:, : keep - dominant]
    kept = looked_at.scatter(1, targets, True)
    owner = torch.arange(count, device=saliency.device).expand_as(share)
    if targets.shape[1] == 0:
        return kept, owner, torch.zeros_like(kept)
    among = features.gather(1, targets[..., None].expand(-1, -1, features.shape[2]))
    nearest = in_steps(likenesses(features, among)).argmax(-1)
    return kept, torch.where(kept, owner, targets.gather(1, nearest)), ~kept
