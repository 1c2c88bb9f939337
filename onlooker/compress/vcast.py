"""More tokens where the stream turns, fewer where it goes on as it did (V-CAST).

Lin et al., "V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video Large Language Models" (arXiv
2603.27650) and its code. A frame is one unit vector, its mean token. Curvature is one less the cosine of the step to it
and the step from it; the budget is dealt by the softmax of curvatures (temperature 0.7), at least one token a frame. Of
a frame those tokens stay that are least like its mean and longest: `1 - cos(x, mean)` plus the length, brought to 0 to
1. Changed:

- a frame is given out when the next one has come, since its curvature needs that: a look-ahead of one frame;
- a softmax over the clip needs its end: a frame gets `keep_ratio` times its weight over the mean weight so far, and
  what rounding leaves over goes to the next frame;
- steps shorter than `still` have no direction: between two frames that are the same but for noise they point back and
  forth, and curvature would be largest where nothing happens (1.5 for pure noise, 1 for a cut).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from onlooker.compress import _batching
from onlooker.compress._batching import LongRun, alike, among_best, beside, copies, earlier, held, in_steps
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept, Stepped, masked
from onlooker.core.contracts import Compress
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

TEMPERATURE = 0.7


@dataclass
class VcastState(StreamState):
    """The frame that waits for the next, and the way that led to it."""

    replaces: ClassVar[bool] = True

    waiting: VisualTokens | None = None
    here: Tensor | None = None
    """Its mean token at unit length, float32 `[dim]`; and those of the frames before and after it."""
    before: Tensor | None = None
    after: Tensor | None = None
    sums: Tensor | None = None
    """Weights of all frames that were given out, their number, and the tokens that rounding has left over, float32
    `[3]`."""


@dataclass(frozen=True)
class VCast(Stepped, LongRun):
    """Budgets by curvature, tokens by how they stand out."""

    remembers: ClassVar[tuple[str, ...]] = ("sums",)

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

    def passed(self, batch: Sequence[VisualTokens], states: Sequence[StreamState], run: Compress) -> list[VisualTokens]:
        """What is kept of the frame before, of each stream; waits for the device once for all of one shape."""
        mine, outs = [s for s in states if isinstance(s, VcastState)], _batching.nothings(batch)
        for members in alike(batch):
            unit = normalize(beside(batch, members).mean(1, dtype=torch.float32), dim=1)
            for i, mean in zip(members, copies(unit.unbind()), strict=True):
                mine[i].after = mean
            late = {i: waiting for i in members if (waiting := mine[i].waiting) is not None}
            for same in alike(list(late.values())):  # a picture of another size may wait
                some = [list(late)[n] for n in same]
                for i, out in zip(some, run([late[i] for i in some], [mine[i] for i in some]), strict=True):
                    outs[i] = out
            for i, waiting in zip(members, _batching.owned(batch, members), strict=True):
                mine[i].before, mine[i].here, mine[i].after, mine[i].waiting = (
                    mine[i].here,
                    mine[i].after,
                    None,
                    waiting,
                )
        return outs

    def flush(self, state: StreamState) -> VisualTokens | None:
        """What is kept of the newest frame, as the last one of a clip."""
        assert isinstance(state, VcastState)
        waiting, state.waiting = state.waiting, None
        return None if waiting is None else self.plainly([waiting], [state])[0]

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The means before, of and after the frame, whether there are three, and the sums."""
        mine, size = [s for s in states if isinstance(s, VcastState)], 3 + tokens.features.shape[1]
        blank = torch.zeros(size, device=tokens.features.device)
        here = held(mine, "here", blank[3:])
        before, came = earlier([state.before for state in mine], here)
        after, goes_on = earlier([state.after for state in mine], here)
        return here, before, after, came & goes_on, held(mine, "sums", blank[:3])

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """So many tokens as the curvature is worth, those that stand out."""
        features, (here, before, after, inside, sums) = tokens.features.detach().unflatten(0, (streams, -1)), past
        most = features.shape[1]
        to, away = here - before, after - here
        moves = (to.norm(dim=1) > self.still) & (away.norm(dim=1) > self.still)
        curvature = ((1 - cosine_similarity(to, away, dim=1)) * moves).masked_fill(~inside, 1)  # 1 at a stream's ends
        weight = torch.exp(curvature / TEMPERATURE)
        total, number = sums[:, 0] + weight, sums[:, 1] + 1
        wanted = (most * self.keep_ratio * weight * number / total).clamp(1, most) + sums[:, 2]
        count = wanted.round().clamp(1, most)
        length = torch.linalg.vector_norm(features, dim=2, dtype=torch.float32)
        length = length - length.amin(1, keepdim=True)
        score = in_steps(1 - likeness(features, here[:, None]) + length / length.amax(1, keepdim=True).clamp_min(1e-12))
        return masked(
            tokens, among_best(score, count), (torch.stack([total, number, (wanted - count).clamp(-1, 1)], 1),)
        )
