"""One whole frame in four, and of the frames between only what differs from it most (DyCoke, stage 1).

Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025 (arXiv 2411.15024),
section 3.2. In every group of four frames the first is kept whole; the second and the third keep the tokens least like
the first one's at the same place, the fourth those least like the third one's. Nothing is merged, whatever the name
says, and every frame is compared with earlier ones only, so it streams as it is. Changed:

- kept tokens stay in raster order (the authors' code leaves them in order of likeness);
- the last group is no exception (there, its third frame is not pruned);
- stage 2, which picks from the cache again at every decoded token, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import Batched, alike, beside, selected
from onlooker.compress._keep import best, check_keep, num_kept
from onlooker.compress._likeness import likeness
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

GROUP = 4
"""Frames in a group."""


@dataclass
class GroupState(StreamState):
    """The frames of the present group that later ones are compared with."""

    first: Tensor | None = None
    """Features of the group's first frame, `[tokens, dim]`."""
    third: Tensor | None = None
    """Features of its third frame, `[tokens, dim]`; of its first one until then, so that the state has one size."""
    place: int = 0
    """Place of the next frame in its group."""


@dataclass(frozen=True)
class DyCoke(Batched):
    """Periodic whole frames bound how far the stream can drift unseen."""

    whole_frames: ClassVar[bool] = True

    between_ratio: float = 0.3
    """Share of the tokens kept of the three frames between whole ones, in (0, 1]."""

    def __post_init__(self) -> None:
        check_keep(None, self.between_ratio)

    def new_state(self) -> GroupState:
        """At the start of a group."""
        return GroupState()

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The whole frame, or what differs most from an earlier frame of its group, of each stream."""
        kept, before = list(batch), [self._before(*one) for one in zip(batch, states, strict=True)]
        for members in alike(batch):
            thinned = [i for i in members if before[i] is not None]
            if not thinned:
                continue
            past = torch.stack([one for i in thinned if (one := before[i]) is not None])
            index = best(-likeness(beside(batch, thinned), past), num_kept(past.shape[1], None, self.between_ratio))
            for i, out in zip(thinned, selected(batch, thinned, index), strict=True):
                kept[i] = out
        return kept

    def _before(self, tokens: VisualTokens, state: StreamState) -> Tensor | None:
        """What a frame is compared with; None for one that is kept whole."""
        assert isinstance(state, GroupState)
        features = tokens.features.detach()
        if state.first is None or state.first.shape != features.shape or state.place == GROUP:
            # The caller may write the next frame into the same memory.
            state.first, state.third, state.place = features.clone(), features.clone(), 1
            return None
        state.place += 1
        earlier = state.first if state.place < GROUP else state.third
        if state.place == GROUP - 1:
            state.third = features.clone()
        return earlier
