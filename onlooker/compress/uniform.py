"""Keep tokens evenly spread over the picture, whatever it shows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._keep import Budgeted
from onlooker.compress._steps import Kept, Stepped, chosen
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Uniform(Budgeted, Stepped):
    """A lattice over the token grid: evenly spaced lines, evenly spaced tokens on each.

    Taking every n-th token in raster order instead would pick whole columns whenever n divides the width, which makes
    the baseline look worse than it is. The choice depends on the grid and the count alone.
    """

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The tokens on the lattice; a frame that was thinned before is spaced evenly as a list."""
        size = len(tokens) // streams
        if self.num_kept(size) == size:
            return Kept(tokens)
        return chosen(tokens, self._lattice(tokens.grid, size, tokens.features.device).expand(streams, -1))

    def _lattice(self, grid: tuple[int, int], size: int, device: torch.device) -> Tensor:
        """The places that are kept of a frame of so many tokens, int64 `[kept]`."""
        keep = self.num_kept(size)
        rows, cols = grid if math.prod(grid) == size else (1, size)
        # As many lines as make the spacing along and across equal, but enough that no line overflows.
        lines = min(rows, max(round(math.sqrt(keep * rows / cols)), -(-keep // cols), 1))
        lines = min(lines, keep)
        place = torch.arange(keep, device=device)
        line = place * lines // keep
        start = (line * keep + lines - 1) // lines
        count = ((line + 1) * keep + lines - 1) // lines - start
        row = (2 * line + 1) * rows // (2 * lines)
        col = (2 * (place - start) + 1) * cols // (2 * count)
        return row * cols + col
