"""Merge the most alike neighbours in rounds until the budget is met (ToMe, on the tokens behind the projector).

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461), section 3: tokens are dealt in turn to
two sides, every token of the first side proposes its most alike of the second, and the most alike pairs are merged,
averaged by how many tokens each stands for. Changed:

- it runs once on the tokens that enter the language model, compared by their own cosine, and not on keys inside every
  block of the tower: there the grid is lost, on which rotary positions, windows and pooling of the towers rest;
- a round merges at most half of the tokens, so that a small budget takes several; at most one merge a token and round;
- a merged token takes the coordinates of its first member in raster order, not those of the second side;
- attention is not raised by the logarithm of the weight: the language model is the stock one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._clip import averaged
from onlooker.compress._keep import Budgeted
from onlooker.compress._likeness import likenesses
from onlooker.compress._steps import Kept, Stepped
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.kernels.ranks import kept_first, kernels_on


@dataclass(frozen=True)
class ToMe(Budgeted, Stepped):
    """Bipartite soft matching within one frame."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Frames after as many rounds as their budget asks for."""
        return Kept(merged_in_rounds(tokens, streams, self.num_kept(len(tokens) // streams)))


def merged_in_rounds(tokens: VisualTokens, streams: int, keep: int) -> VisualTokens:
    """Tokens of several streams, as many of each, one after the other, merged until `keep` of each are left. Nothing
    waits for the device."""
    while len(tokens) > streams * keep:
        count = len(tokens) // streams
        owner = merge_round(tokens.features.detach().unflatten(0, (streams, count)), count - keep)
        left = count - min(count - keep, count // 2)
        first = torch.arange(0, streams * count, count, device=owner.device)[:, None]
        order, _ = kept_first(owner == torch.arange(count, device=owner.device), kernels_on(owner.device.type))
        tokens = averaged(tokens, (owner + first).flatten()).select(order[:, :left].flatten())
    return tokens


def merge_round(features: Tensor, surplus: int) -> Tensor:
    """The first member of the group that each token of each stream (`[streams, tokens, dim]`) is in after one round
    that merges up to `surplus` pairs, int64 `[streams, tokens]`."""
    streams, count = features.shape[:2]
    alike, partner = in_steps(likenesses(features[:, 0::2], features[:, 1::2])).max(-1)
    chosen = among_best(alike, torch.full((streams,), min(surplus, count // 2), device=features.device))
    place = torch.arange(count, device=features.device).expand(streams, -1)
    sides = place[:, 0::2]
    root = place.scatter(1, sides, torch.where(chosen, 2 * partner + 1, sides))
    return place.scatter_reduce(1, root, place, "amin").gather(1, root)
