"""More tokens where the stream turns, fewer where it goes on as it did (V-CAST).

Lin et al., "V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video Large Language Models" (arXiv
2603.27650) and its code. A frame is one unit vector, its mean token. Curvature is one less the cosine of the step to it
and the step from it; the budget is dealt by the softmax of curvatures (temperature 0.7), at least one token a frame. Of
a frame those tokens stay that are least like its mean and longest: `1 - cos(x, mean)` plus the length, brought to 0 to
1. Changed:

- a frame is given out when the next one has come, since its curvature needs that: a look-ahead of one frame;
- a softmax over the clip needs its end: a frame gets `keep_ratio` times its weight over the mean weight so far, and
  what rounding leaves over goes to the next frame;
- steps shorter than `still` have no direction: pure noise points back and forth (1.5, a cut has 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from onlooker.compress._batching import LongRun, Run, alike, among_best, held, in_steps, keep_waiting, nothings
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept, Stepped, masked
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

TEMPERATURE = 0.7


@dataclass
class VcastState(StreamState):
    """The frame that waits for the next, and the way that led to it."""

    replaces: ClassVar[bool] = True

    waiting: VisualTokens | None = None
    before: Tensor | None = None
    """The mean token of the frame before it at unit length, float32 `[dim]`."""
    sums: Tensor | None = None
    """Weights of all frames that were given out, their number, and the tokens that rounding has left over, float32
    `[3]`."""


@dataclass(frozen=True)
class VCast(Stepped, LongRun):
    """Budgets by curvature, tokens by how they stand out."""

    remembers: ClassVar[tuple[str, ...]] = ("before", "sums")

    still: float = 0.02
    """Length of a step of the unit mean token below which it has no direction; 0: the published form."""

    @property
    def lookahead(self) -> int:
        """A frame waits for the next one."""
        return 1

    def num_held(self, state: StreamState) -> int:
        """The newest frame."""
        return int(isinstance(state, VcastState) and state.waiting is not None)

    def new_state(self) -> VcastState:
        """Nothing waits."""
        return VcastState()

    @property
    def step_frames(self) -> int:
        """The frame that is given out, and the one that it waited for."""
        return 2

    def passed(self, batch: Sequence[VisualTokens], states: Sequence[StreamState], run: Run) -> list[VisualTokens]:
        """What is kept of the frame before, of each stream; waits for the device once for all of one shape."""
        mine, outs = [s for s in states if isinstance(s, VcastState)], list(batch)
        for members in alike(batch):
            pairs: dict[int, list[VisualTokens]] = {}
            for i, waiting, tokens in ((i, mine[i].waiting, batch[i]) for i in members):
                if waiting is not None and (waiting.grid, len(waiting)) == (tokens.grid, len(tokens)):
                    pairs[i] = [waiting, tokens]
                else:  # a picture of another size ends the clip
                    outs[i] = nothings([tokens])[0] if waiting is None else self.plainly([waiting], [mine[i]])[0]
            keep = partial(keep_waiting, batch, mine, members, lambda state, new: setattr(state, "waiting", new))
            parts = [one for pair in pairs.values() for one in pair]
            given = run(parts, [mine[i] for i in pairs], keep) if parts else keep() or []
            for (i, (waiting, _)), out in zip(pairs.items(), given, strict=True):
                outs[i] = replace(out, whole=waiting.whole) if out.whole else out  # of the one frame, not of both
        return outs

    def flush(self, state: StreamState) -> VisualTokens | None:
        """What is kept of the newest frame, as the last one of a clip."""
        assert isinstance(state, VcastState)
        waiting, state.waiting = state.waiting, None
        return None if waiting is None else self.plainly([waiting], [state])[0]

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The mean before the frame, and the sums."""
        blank = torch.zeros(3 + tokens.features.shape[1], device=tokens.features.device)
        return held(states, "before", blank[3:]), held(states, "sums", blank[:3])

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """So many tokens of the first frame as the curvature is worth, those that stand out."""
        (before, sums), both = past, tokens.features.detach().unflatten(0, (streams, frames, -1))
        means = normalize(both.mean(2, dtype=torch.float32), dim=2)
        features, here, after, most = both[:, 0], means[:, 0], means[:, -1], both.shape[2]
        to, away = here - before, after - here
        moves = (to.norm(dim=1) > self.still) & (away.norm(dim=1) > self.still)
        inside = (sums[:, 1] > 0) & (frames > 1)
        curvature = ((1 - likeness(to[:, None], away[:, None])[:, 0]) * moves).masked_fill(~inside, 1)  # 1 at the ends
        weight = torch.exp(curvature / TEMPERATURE)
        total, number = sums[:, 0] + weight, sums[:, 1] + 1
        wanted = (most * self.keep_ratio * weight * number / total).clamp(1, most) + sums[:, 2]
        count = wanted.round().clamp(1, most)
        length = torch.linalg.vector_norm(features, dim=2, dtype=torch.float32)
        length = length - length.amin(1, keepdim=True)
        score = in_steps(1 - likeness(features, here[:, None]) + length / length.amax(1, keepdim=True).clamp_min(1e-12))
        mask = pad(among_best(score, count), (0, (frames - 1) * most))
        sums = torch.stack([total, number, (wanted - count).clamp(-1, 1)], 1)
        return masked(tokens, mask, (here, sums))
