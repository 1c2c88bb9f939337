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
from onlooker.compress._batching import LongRun, alike, among_best, beside, copies, earlier, in_steps, where
from onlooker.compress._likeness import likeness
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
    sums: Tensor | None = None
    """Weights of all frames that were given out, their number, and the tokens that rounding has left over, float32
    `[3]`."""


@dataclass(frozen=True)
class VCast(LongRun):
    """Budgets by curvature, tokens by how they stand out."""

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

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """What is kept of the frame before, of each stream; waits for the device once for all of one shape."""
        mine = [state for state in states if isinstance(state, VcastState)]
        outs = _batching.nothings(batch)
        for members in alike(batch):
            unit = normalize(beside(batch, members).mean(1, dtype=torch.float32), dim=1)
            means = dict(zip(members, copies(unit.unbind()), strict=True))
            held = {i: waiting for i in members if (waiting := mine[i].waiting) is not None}
            for same in alike(list(held.values())):  # a picture of another size may wait
                some = [list(held)[n] for n in same]
                given = self._given([mine[i] for i in some], torch.stack([means[i] for i in some]))
                for i, out in zip(some, given, strict=True):
                    outs[i] = out
            for (i, mean), waiting in zip(means.items(), _batching.owned(batch, members), strict=True):
                mine[i].before, mine[i].here, mine[i].waiting = mine[i].here, mean, waiting
        return outs

    def flush(self, state: StreamState) -> VisualTokens | None:
        """What is kept of the newest frame, as the last one of a clip."""
        assert isinstance(state, VcastState)
        out = None if state.waiting is None else self._given([state], None)[0]
        state.waiting = None
        return out

    def _given(self, states: Sequence[VcastState], after: Tensor | None) -> list[VisualTokens]:
        """The tokens that are kept of the frames that wait, of one shape, now that the next ones' means are known."""
        held = [tokens for state in states if (tokens := state.waiting) is not None]
        here = torch.stack([mean for state in states if (mean := state.here) is not None])
        features = beside(held, range(len(held)))
        most = features.shape[1]
        weight = torch.exp(self._curvature([state.before for state in states], here, after) / TEMPERATURE)
        sums = torch.stack([here.new_zeros(3) if state.sums is None else state.sums for state in states])
        total, number = sums[:, 0] + weight, sums[:, 1] + 1
        wanted = (most * self.keep_ratio * weight * number / total).clamp(1, most) + sums[:, 2]
        count = wanted.round().clamp(1, most)
        new = torch.stack([total, number, (wanted - count).clamp(-1, 1)], dim=1)
        length = torch.linalg.vector_norm(features, dim=2, dtype=torch.float32)
        length = length - length.amin(1, keepdim=True)
        stands_out = 1 - likeness(features, here[:, None])
        score = in_steps(stands_out + length / length.amax(1, keepdim=True).clamp_min(1e-12))
        for state, row in zip(states, copies(new.unbind()), strict=True):
            state.sums = row
        return where(held, range(len(held)), among_best(score, count))

    def _curvature(self, before: Sequence[Tensor | None], here: Tensor, after: Tensor | None) -> Tensor:
        """0 to 2, `[streams]`; 1 at the ends of a stream."""
        if after is None:
            return here.new_ones(len(here))
        past, known = earlier(before, here)
        to, away = here - past, after - here
        moves = (to.norm(dim=1) > self.still) & (away.norm(dim=1) > self.still)
        turn = (1 - cosine_similarity(to, away, dim=1)) * moves
        return torch.where(known, turn, torch.ones_like(turn))
