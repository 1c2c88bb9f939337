"""Keep the share of tokens that changed most, over the stream and not over each frame (EVS, as vLLM serves it).

"Efficient Video Sampling" (arXiv 2510.14624) and vLLM's `--video-pruning-rate`: a token is worth one less its cosine
to the token at the same place of the frame before; of a whole clip the best share is kept, the first frame always.
Changed:

- a stream has no end, so the share is taken of all frames so far, by a histogram of what tokens were worth (in powers
  of two, to tell apart how little a still scene changes), which forgets;
- a token is kept when it is worth more than the bin in which the share begins: with the bin's lower edge, a scene that
  stands still would be kept whole. A busy moment keeps more, a quiet one less or nothing, and the long-run share is
  `keep_ratio` while the stream is alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import LongRun, earlier, held
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept, Stepped, masked
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

OCTAVES, BINS = 16, 32
"""Powers of two below the largest worth that a histogram tells apart, and bins in each."""


@dataclass
class EvsState(StreamState):
    """The frame before, and how much tokens were worth."""

    replaces: ClassVar[bool] = True

    before: Tensor | None = None
    """`[tokens, dim]`."""
    histogram: Tensor | None = None
    """Tokens by worth, least first, float32 `[OCTAVES * BINS]`."""


@dataclass(frozen=True)
class EVS(Stepped, LongRun):
    """Efficient video sampling, causal."""

    whole_frames: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("before", "histogram")

    horizon: int = 256
    """Frames that the share is taken over: older ones count less and less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < 1:
            raise InputError("a horizon is a number of frames", given=f"horizon={self.horizon}", do="give 1 or more")

    def new_state(self) -> EvsState:
        """No frame before, nothing counted."""
        return EvsState()

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The frame before, whether there was one, and the histogram."""
        mine = [state for state in states if isinstance(state, EvsState)]
        now = tokens.features.detach().unflatten(0, (len(states), -1))
        empty = torch.zeros(OCTAVES * BINS, device=now.device)
        return *earlier([state.before for state in mine], now), held(mine, "histogram", empty)

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The tokens above the edge of the share."""
        now, (before, known, counted) = tokens.features.detach().unflatten(0, (streams, -1)), past
        place = _bins(1 - likeness(now, before))
        seen = torch.zeros_like(counted).scatter_add_(1, place, torch.ones_like(place, dtype=counted.dtype))
        counted = counted * (1 - 1 / self.horizon) + seen * known[:, None]
        total = counted.cumsum(1)
        # The first bin up to which all that is not to be kept lies; a hair of grace for sums of shares.
        edge = (total < (1 - self.keep_ratio) * total[:, -1:] * (1 - 1e-6)).sum(1, keepdim=True)
        mask = (place > edge) | ~known[:, None] if self.keep_ratio < 1 else torch.ones_like(place, dtype=torch.bool)
        return masked(tokens, mask, (now, counted))


def _bins(worth: Tensor) -> Tensor:
    """The bin of each worth, 0 to 2, int64: those below the least octave are in the first."""
    place = (torch.log2(worth.clamp_min(1e-12) / 2) + OCTAVES) * BINS
    return place.floor().clamp(0, OCTAVES * BINS - 1).long()
