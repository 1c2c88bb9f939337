"""More tokens where the stream turns, fewer where it goes on as it did (V-CAST).

"V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video Large Language Models" and its code. A frame
is one unit vector, its mean token. Curvature is one less the cosine of the step to it and the step from it; the budget
is dealt by the softmax of curvatures (temperature 0.7), at least one token a frame. Of a frame those tokens stay that
are least like its mean and longest: `1 - cos(x, mean)` plus the length, brought to 0 to 1. Changed:

- a frame is given out when the next one has come, since its curvature needs that: a look-ahead of one frame;
- a softmax over the clip needs its end: a frame gets `keep_ratio` times its weight over the mean weight so far, and
  what rounding leaves over goes to the next frame;
- steps shorter than `still` have no direction: between two frames that are the same but for noise they point back and
  forth, and curvature would be largest where nothing happens (1.5 for pure noise, 1 for a cut).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from onlooker.compress._batching import among_best, chosen, in_steps
from onlooker.compress._keep import check_keep
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

TEMPERATURE = 0.7


@dataclass
class VcastState(StreamState):
    """The frame that waits for the next, and the way that led to it."""

    replaces: ClassVar[bool] = True

    waiting: VisualTokens | None = None
    here: Tensor | None = None
    """Its mean token at unit length, float32 `[dim]`."""
    before: Tensor | None = None
    """That of the frame before it."""
    weights: Tensor | None = None
    """Sum of the weights of all frames that were given out, and their number, float32 `[2]`."""
    over: Tensor | None = None
    """Tokens that rounding has left over, float32 `[1]`."""


@dataclass(frozen=True)
class VCast(Compressor):
    """Budgets by curvature, tokens by how they stand out."""

    keep_ratio: float = 0.3
    """Share of the stream's tokens to keep in the long run, in (0, 1]."""
    still: float = 0.02
    """Length of a step of the unit mean token below which it has no direction; 0: the published form."""

    def __post_init__(self) -> None:
        check_keep(None, self.keep_ratio)

    @property
    def lookahead(self) -> int:
        """A frame waits for the next one."""
        return 1

    def num_held(self, state: StreamState) -> int:
        """The newest frame."""
        return int(isinstance(state, VcastState) and state.waiting is not None)

    def less(self) -> Self:
        """Half the share."""
        return replace(self, keep_ratio=self.keep_ratio / 2)

    def new_state(self) -> VcastState:
        """Nothing waits."""
        return VcastState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """What is kept of the frame before."""
        assert isinstance(state, VcastState)
        mean = normalize(tokens.features.detach().float().mean(0), dim=0)
        out = None if state.waiting is None else self._given(state, mean)
        state.before, state.here = state.here, mean
        copied = {name: value.clone() for name, value in tokens.whole.items()}
        state.waiting = replace(tokens.select(torch.arange(len(tokens), device=tokens.features.device)), whole=copied)
        return tokens.select(torch.arange(0, device=tokens.features.device)) if out is None else out

    def flush(self, state: StreamState) -> VisualTokens | None:
        """What is kept of the newest frame, as the last one of a clip."""
        assert isinstance(state, VcastState)
        out = None if state.waiting is None else self._given(state, None)
        state.waiting = None
        return out

    def _given(self, state: VcastState, after: Tensor | None) -> VisualTokens:
        """The tokens that are kept of the frame that waits, now that the next one is known."""
        tokens, here = state.waiting, state.here
        assert tokens is not None and here is not None
        weight = torch.exp(self._curvature(state.before, here, after) / TEMPERATURE).view(1)
        sums = torch.cat([weight, torch.ones_like(weight)])
        state.weights = sums if state.weights is None else state.weights + sums
        mean = state.weights[0] / state.weights[1]
        wanted = (len(tokens) * self.keep_ratio * weight / mean).clamp(1, len(tokens))
        wanted = wanted if state.over is None else wanted + state.over
        count = wanted.round().clamp(1, len(tokens))
        state.over = (wanted - count).clamp(-1, 1)
        features = tokens.features.detach().float()
        length = features.norm(dim=1)
        length = (length - length.min()) / (length.max() - length.min()).clamp_min(1e-12)
        score = in_steps(1 - cosine_similarity(features, here[None], dim=1) + length)
        return tokens.select(chosen(among_best(score[None], count))[0])

    def _curvature(self, before: Tensor | None, here: Tensor, after: Tensor | None) -> Tensor:
        """0 to 2; 1 at the ends of a stream."""
        if before is None or after is None or before.shape != here.shape:
            return here.new_ones(())
        to, away = here - before, after - here
        turn = 1 - cosine_similarity(to[None], away[None], dim=1)[0]
        return torch.where((to.norm() > self.still) & (away.norm() > self.still), turn, torch.zeros_like(turn))
