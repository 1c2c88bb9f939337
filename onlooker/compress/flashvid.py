"""Diverse salient tokens of each frame, and trees through space and time for the rest (FlashVID, before the decoder).

Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging",
ICLR 2026 (arXiv 2602.08024). A clip is cut into segments of like frames. 70 % of a frame's budget are picked as `adts`
does. Each other token links to the most like one among the others of the frame before, wherever it is, if their cosine
is above `alike`; a tree becomes one token, the mean of all its members, in the frame of its root. What is then left of
a frame is merged around dense centres down to the budget. The budget is 1.25 times the share that is named: the authors
bring it down again inside the language model, by its attention to a question, which a stream that is read once for
all questions cannot do. So compare by what is kept, or give `expansion=1`. Changed, besides:

- the clip is a window of the stream, with one segment at least for every four frames (there: eight of 32);
- a tree's mean counts every member once; the released code counts long chains several times;
- a segment of one frame does not give out picked tokens twice (there it does);
- `event`, the relevance to the segment, is a cosine, not below 0; the code's plain product turns distances around;
- when too few trees would be left, the weakest links are cut: what raising the threshold does.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from onlooker.compress._batching import in_steps
from onlooker.compress._clip import ClipMethod, ClipState, merged_into, segments
from onlooker.compress._density import centres_of, density_scores
from onlooker.compress.adts import picked
from onlooker.core.tokens import VisualTokens

SEGMENT = 4
"""Frames for which there is one segment at least."""
DIVERSE = 0.7
"""Share of a frame's budget that is picked."""


@dataclass(frozen=True)
class FlashVID(ClipMethod):
    """ADTS and TSTM on windows of a stream."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    realises: ClassVar[tuple[str, ...]] = ("flashvid",)

    expansion: float = 1.25
    """The budget as a multiple of `keep_ratio`."""
    alike: float = 0.8
    """Cosine above which a token may join one of the frame before."""
    event: bool = False
    """Weigh saliency by the relevance to the segment (the authors do for LLaVA and not for Qwen)."""

    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """The picked tokens of all frames, and what the trees of each segment come to."""
        x = tokens.features.detach().float().unflatten(0, (frames, -1))
        saliency = tokens.extras["saliency"].detach().float().view(frames, -1)
        means = x.mean(1)
        parts = segments(means, max(1, frames // SEGMENT), 0.9)
        count = x.shape[1]
        budget = min(count, max(1, -int(-count * self.keep_ratio * self.expansion // 1)))
        diverse = min(budget, max(1, -int(-budget * DIVERSE // 1)))
        if self.event:
            about = [cosine_similarity(x[a:b, :, None], means[None, None, a:b], dim=-1).mean(-1) for a, b in parts]
            saliency = saliency * torch.cat(about).clamp_min(0)
        chosen = picked(x, saliency, diverse) > 0
        parent = torch.cat([self._parents(x[a:b], chosen[a:b], budget - diverse) + a * count for a, b in parts])
        root = parent.flatten()
        for _ in range(frames.bit_length()):  # every step doubles how far up a token looks
            root = root[root]
        return merged_into(tokens, *_thinned(tokens, root, chosen, budget - diverse))

    def _parents(self, x: Tensor, chosen: Tensor, budget: int) -> Tensor:
        """The token of the segment that each one joins, itself where none, int64 `[frames, tokens]`."""
        frames, count = chosen.shape
        itself = torch.arange(frames * count, device=x.device).view(frames, count)
        if frames == 1:
            return itself
        unit = normalize(x, dim=-1)
        likeness = in_steps(torch.bmm(unit[1:], unit[:-1].transpose(1, 2)))
        likeness = likeness.masked_fill(chosen[:-1, None, :] | chosen[1:, :, None], -torch.inf)
        best, place = likeness.max(-1)
        linked = best > in_steps(torch.tensor(self.alike, device=x.device))
        # No more links than leave the budget: the strongest stay.
        most = max(0, int((~chosen).sum()) - budget * frames)
        strength = torch.where(linked, best, best.new_full((), -torch.inf)).flatten()
        order = strength.sort(descending=True, stable=True).indices[:most]
        stays = torch.zeros(strength.numel(), dtype=torch.bool, device=x.device)
        stays[order] = True
        joins = linked & stays.view_as(linked)
        return torch.cat([itself[:1], torch.where(joins, place + itself[:-1, :1], itself[1:])])


def _thinned(tokens: VisualTokens, root: Tensor, chosen: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The token that each one goes into once the trees of every frame are merged around dense centres, and which of
    those are kept."""
    frames, count = chosen.shape
    itself = torch.arange(root.numel(), device=root.device)
    is_root = (root == itself).view(frames, count) & ~chosen
    trees = merged_into(tokens, root)
    merged = tokens.features.detach().float().clone()
    merged[(root == itself).nonzero()[:, 0]] = trees.features.float()
    wanted = is_root.sum(1).clamp_max(budget)
    centre, owner = centres_of(*density_scores(merged.unflatten(0, (frames, -1)), is_root), wanted)
    first = torch.arange(frames, device=root.device)[:, None] * count
    owner = torch.where(is_root, owner + first, itself.view(frames, count)).flatten()
    kept = (chosen | centre).flatten()
    return torch.where(chosen.flatten(), itself, owner[root]), kept
