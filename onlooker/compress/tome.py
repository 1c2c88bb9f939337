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
from torch.nn.functional import normalize

from onlooker.compress._keep import Budgeted
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class ToMe(Budgeted):
    """Bipartite soft matching within one frame."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The frame after as many rounds as its budget asks for."""
        keep = self.num_kept(len(tokens))
        while len(tokens) > keep:
            tokens = tokens.merge(merge_round(tokens.features.detach().float(), len(tokens) - keep))
        return tokens


def merge_round(features: Tensor, surplus: int) -> Tensor:
    """The group of each token after one round that merges up to `surplus` pairs, int64 `[tokens]`."""
    count = len(features)
    unit = normalize(features, dim=-1)
    likeness, partner = (unit[0::2] @ unit[1::2].T).max(-1)
    # A stable sort: of equally alike pairs the earlier one is merged, on every device.
    chosen = likeness.sort(descending=True, stable=True).indices[: min(surplus, count // 2)]
    root = torch.arange(count, device=features.device)
    root[2 * chosen] = 2 * partner[chosen] + 1
    place = torch.arange(count, device=features.device)
    first = place.scatter_reduce(0, root, place, "amin")  # the first member of the group with this root
    leads = (first[root] == place).long()
    return (leads.cumsum(0) - 1)[first[root]]
