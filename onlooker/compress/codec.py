"""Keep the tokens of which the video's own encoder says that they moved unlike the rest, or are new.

The vectors of predictive codecs come for nothing (CodecSight, arXiv 2604.06036; CoPE-VideoLM, arXiv 2602.13191; neither
has published code, so the score is ours): a token is worth how far its motion is from the median motion of the frame,
which is the camera's, plus how unevenly it moved within, plus `new` times the share of it that came from nowhere.

Of a frame of which the encoder says nothing, tokens are worth how little they are like those at the same place of the
frame before (as in `evs`); such frames are counted in the state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import earlier, held, in_steps
from onlooker.compress._likeness import likeness
from onlooker.compress._scorer import SteppedScorer
from onlooker.core.checks import number
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass
class CodecState(StreamState):
    """The frame before, for frames of which nothing is said."""

    replaces: ClassVar[bool] = True

    before: Tensor | None = None
    """`[tokens, dim]`."""
    num_fallbacks: Tensor | None = None
    """Frames of which nothing was said, int64 `[1]`."""


@dataclass(frozen=True)
class Codec(SteppedScorer):
    """A pruner by motion vectors."""

    hears_codec: ClassVar[bool] = True
    whole_frames: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("before", "num_fallbacks")

    new: float = 0.1
    """Motion, as a share of the picture, that being new is worth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("new", self.new, least=0.0, most=10.0, do="a share of the picture, such as 0.1")

    def new_state(self) -> CodecState:
        """No frame before."""
        return CodecState()

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The frame before, and how many there were of which nothing was said."""
        mine, now = [s for s in states if isinstance(s, CodecState)], tokens.features.detach()
        before, _ = earlier([state.before for state in mine], now.unflatten(0, (len(mine), -1)))
        none = torch.zeros(1, dtype=torch.int64, device=now.device)
        return before, held(mine, "num_fallbacks", none)

    def worth(
        self, tokens: VisualTokens, features: Tensor, past: tuple[Tensor, ...], pruned: bool
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Motion where it is known, else change."""
        before, num_fallbacks = past
        nothing = torch.zeros(len(tokens), 4, device=features.device)
        said = tokens.extras.get("codec", nothing).float().unflatten(0, features.shape[:2])
        told = said[..., 3].amax(1) > 0
        new = features, num_fallbacks + (~told).long()[:, None]
        if not pruned:
            return None, new
        motion, spread, known = said[..., :2], said[..., 2], said[..., 3]
        own = (motion - motion.median(1, keepdim=True).values).norm(dim=-1)
        moved = (own + spread) * known + self.new * (1 - known)
        change = 1 - likeness(features, before)
        return in_steps(torch.where(told[:, None], moved, change)), new
