"""Keep tokens evenly spread over the picture, whatever it shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._batching import Batched, alike, selected
from onlooker.compress._keep import Budgeted
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Uniform(Budgeted, Batched):
    """A lattice over the token grid: evenly spaced lines, evenly spaced tokens on each.

    Taking every n-th token in raster order instead would pick whole columns whenever n divides the width, which makes
    the baseline look worse than it is. The choice depends on the grid and the count alone.
    """

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The tokens on the lattice; a frame that was thinned before is spaced evenly as a list."""
        kept = list(batch)
        for members in alike(batch):
            if self.num_kept(len(batch[members[0]])) == len(batch[members[0]]):
                continue
            index = self._lattice(batch[members[0]]).expand(len(members), -1)
            for i, out in zip(members, selected(batch, members, index), strict=True):
                kept[i] = out
        return kept

    def _lattice(self, tokens: VisualTokens) -> Tensor:
        """The places that are kept of a frame like this one, int64 `[kept]`."""
        keep = self.num_kept(len(tokens))
        rows, cols = tokens.grid if math.prod(tokens.grid) == len(tokens) else (1, len(tokens))
        # As many lines as make the spacing along and across equal, but enough that no line overflows.
        lines = min(rows, max(round(math.sqrt(keep * rows / cols)), -(-keep // cols), 1))
        lines = min(lines, keep)
        place = torch.arange(keep, device=tokens.features.device)
        line = place * lines // keep
        start = (line * keep + lines - 1) // lines
        count = ((line + 1) * keep + lines - 1) // lines - start
        row = (2 * line + 1) * rows // (2 * lines)
        col = (2 * (place - start) + 1) * cols // (2 * count)
        return row * cols + col
