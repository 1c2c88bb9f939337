"""Keep tokens evenly spread over the picture, whatever it shows."""

import math
from dataclasses import dataclass
from typing import Self

import torch

from onlooker.compress._keep import check_keep, keep_half, num_kept
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Uniform(Compressor):
    """A lattice over the token grid: evenly spaced lines, evenly spaced tokens on each.

    Taking every n-th token in raster order instead would pick whole columns whenever n divides the width, which makes
    the baseline look worse than it is. The choice depends on the grid and the count alone.
    """

    keep: int | None = None
    """Tokens to keep of each frame (give this or keep_ratio)."""
    keep_ratio: float | None = None
    """Share of each frame's tokens to keep, in (0, 1]; 0.3 when neither is given."""

    def __post_init__(self) -> None:
        check_keep(self.keep, self.keep_ratio)

    def less(self) -> Self:
        """Half of the tokens."""
        return keep_half(self)

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens on the lattice; a frame that was thinned before is spaced evenly as a list."""
        keep = num_kept(len(tokens), self.keep, self.keep_ratio)
        if keep == len(tokens):
            return tokens
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
        return tokens.select(row * cols + col)
