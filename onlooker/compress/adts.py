"""The most diverse of the salient tokens, one after the other (ADTS, the first half of FlashVID).

Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging"
(arXiv 2602.08024), attention and diversity based token selection. The distance of two tokens (one less their cosine) is
multiplied by the saliency of the one that might be chosen. The first is the token farthest from its nearest
neighbour; then, again and again, the one farthest from all that are chosen. Changed:

- `event`, the relevance of a token to what happens around it, is measured against the mean of the stream's frames so
  far (the code: of the segment, which needs the future), and by cosine, not below 0: the code's plain product turns
  distances around where it is negative;
- every pick is one step for all streams at once; equal distances are settled by position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from onlooker.compress._batching import copies, in_steps
from onlooker.compress._keep import num_kept
from onlooker.compress._likeness import likenesses
from onlooker.compress._scorer import SteppedScorer
from onlooker.compress._steps import Kept
from onlooker.core.errors import ModelError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.kernels.picks import farthest_first, picks_kernels


@dataclass
class AdtsState(StreamState):
    """What the stream looked like so far."""

    replaces: ClassVar[bool] = True

    mean: Tensor | None = None
    """Mean token of all frames, float32 `[dim]`."""
    num_frames: int = 0


@dataclass(frozen=True)
class ADTS(SteppedScorer):
    """Max-min diversity, weighted by saliency."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    realises: ClassVar[tuple[str, ...]] = ("flashvid",)

    event: bool = False
    """Weigh by relevance to the stream so far as well (the authors do for LLaVA and not for Qwen)."""

    def new_state(self) -> AdtsState:
        """Nothing seen."""
        return AdtsState()

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The mean token so far, and of how many frames it is."""
        if not self.event:
            return ()
        mine, features = [s for s in states if isinstance(s, AdtsState)], tokens.features
        none = torch.zeros(features.shape[1], device=features.device)
        counts = torch.tensor([float(state.num_frames) for state in mine]).to(features.device, non_blocking=True)
        return torch.stack([none if state.mean is None else state.mean for state in mine]), counts

    def worth(
        self, tokens: VisualTokens, features: Tensor, past: tuple[Tensor, ...], pruned: bool
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """How early each token is chosen: as many points as tokens are chosen after it, and one; 0 for those left."""
        weight = tokens.extras["saliency"].detach().float().unflatten(0, features.shape[:2])
        if self.event:
            mean, number = past
            mean = mean + (features.float().mean(1) - mean) / (number[:, None] + 1)
            weight, past = weight * cosine_similarity(features.float(), mean[:, None], dim=-1).clamp_min(0), (mean,)
        count = num_kept(features.shape[1], self.keep, self.keep_ratio)
        return picked(features, weight, count) if pruned else None, past

    def remember(self, states: Sequence[StreamState], kept: Kept) -> None:
        """One frame more is in the mean."""
        mine = [state for state in states if isinstance(state, AdtsState)]
        for state, mean in zip(mine, copies(kept.past[0].unbind()) if self.event else (), strict=self.event):
            state.mean, state.num_frames = mean, state.num_frames + 1


def picked(features: Tensor, weight: Tensor, count: int) -> Tensor:
    """`count` tokens of each frame (`[frames, tokens, dim]`) by largest least distance, as scores
    `[frames, tokens]`: `count` for the first, 1 for the last, 0 for those that are not chosen. `weight` is
    `[frames, tokens]`, not negative."""
    weight = weight / weight.amax(1, keepdim=True).clamp_min(1e-12)
    # [frames, chosen, candidate]: a candidate's own weight counts.
    distance = in_steps((1 - likenesses(features, features)) * weight[:, None, :])
    return farthest_first(distance, count, _kernels() if distance.is_cuda else None)


@cache
def _kernels() -> ModuleType | None:
    try:
        return picks_kernels()
    except ModelError:  # CUDA without Triton: the plain form
        return None
