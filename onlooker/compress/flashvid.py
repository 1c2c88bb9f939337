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
from torch.nn.functional import normalize

from onlooker.compress._batching import STEPS, in_steps
from onlooker.compress._clip import ClipMethod, Parts, SteppedWindows, averaged, merged_into, segments
from onlooker.compress._density import centres_of, density_scores
from onlooker.compress._likeness import likenesses
from onlooker.compress._steps import Kept
from onlooker.compress.adts import picked
from onlooker.core.tokens import VisualTokens
from onlooker.kernels.ranks import kernels_on, rank_within

SEGMENT = 4
"""Frames for which there is one segment at least."""
DIVERSE = 0.7
"""Share of a frame's budget that is picked."""


@dataclass(frozen=True)
class FlashVID(SteppedWindows, ClipMethod):
    """ADTS and TSTM on windows of a stream."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    realises: ClassVar[tuple[str, ...]] = ("flashvid",)

    expansion: float = 1.25
    """The budget as a multiple of `keep_ratio`."""
    alike: float = 0.8
    """Cosine above which a token may join one of the frame before."""
    event: bool = False
    """Weigh saliency by the relevance to the segment (the authors do for LLaVA and not for Qwen)."""

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The picked tokens of all frames, and what the trees of each segment come to."""
        x = tokens.features.detach().unflatten(0, (streams * frames, -1))
        saliency = tokens.extras["saliency"].detach().float().view(len(x), -1)
        means = x.mean(1, dtype=torch.float32)
        parts = segments(means, streams, max(1, frames // SEGMENT), 0.9)
        count = x.shape[1]
        budget = min(count, max(1, -int(-count * self.keep_ratio * self.expansion // 1)))
        diverse = min(budget, max(1, -int(-budget * DIVERSE // 1)))
        if self.event:
            saliency = saliency * _relevance(x, means, parts, streams)
        chosen = picked(x, saliency, diverse) > 0
        root = self._parents(x, chosen, parts, count - budget, streams).flatten()
        for _ in range(frames.bit_length()):  # every step doubles how far up a token looks
            root = root[root]
        return merged_into(tokens, *_thinned(tokens, root, chosen, budget - diverse, streams))

    def _parents(self, x: Tensor, chosen: Tensor, parts: Parts, spare: int, windows: int) -> Tensor:
        """The token of its segment that each one joins, itself where none, int64 `[frames, tokens]`. A segment has no
        more links than `spare` for each frame, which is what its budget leaves: the strongest stay."""
        frames, count = chosen.shape
        itself = torch.arange(frames * count, device=x.device).view(frames, count)
        likeness = in_steps(likenesses(x[1:], x[:-1])).masked_fill(
            chosen[:-1, None, :] | chosen[1:, :, None], -torch.inf
        )
        best, place = likeness.max(-1)
        best = torch.cat([best.new_full((1, count), -torch.inf), best])
        parent = torch.cat([itself[:1], place + itself[:-1, :1]])
        segment, first, limit = (one[:, None] for one in (parts.number, parts.first, parts.length * spare))
        linked = (best > self.alike * STEPS) & (itself[:, :1] != first * count)
        strength = best.masked_fill(~linked, -torch.inf).view(windows, -1)
        rank = rank_within(strength, segment.expand(-1, count).reshape(windows, -1), kernels_on(x.device.type))
        return torch.where(linked & (rank.view(frames, count) < limit), parent, itself)


def _relevance(x: Tensor, means: Tensor, parts: Parts, windows: int) -> Tensor:
    """The mean cosine of every token with the frames of its segment, not below 0, `[frames, tokens]`."""
    unit, each = (normalize(one.float(), dim=-1).unflatten(0, (windows, -1)) for one in (x, means))
    number = parts.number.view(windows, -1)
    together = number[:, :, None] == number[:, None, :]
    cosine = (unit @ each[:, None].transpose(2, 3)) * together[:, :, None]
    return (cosine.sum(3).flatten(0, 1) / parts.length[:, None]).clamp_min(0)


def _thinned(
    tokens: VisualTokens, root: Tensor, chosen: Tensor, budget: int, windows: int
) -> tuple[Tensor, int, Tensor]:
    """The token that each one goes into once the trees of every frame are merged around dense centres, the number of
    windows, and which of those tokens are kept."""
    frames, count = chosen.shape
    itself = torch.arange(root.numel(), device=root.device)
    is_root = (root == itself).view(frames, count) & ~chosen
    merged = averaged(tokens, root).features.detach().unflatten(0, (frames, -1))
    wanted = is_root.sum(1).clamp_max(budget)
    centre, owner = centres_of(*density_scores(merged, is_root), wanted)
    first = torch.arange(frames, device=root.device)[:, None] * count
    owner = torch.where(is_root, owner + first, itself.view(frames, count)).flatten()
    kept = (chosen | centre).flatten()
    return torch.where(chosen.flatten(), itself, owner[root]), windows, kept
