"""Fewer, coarser tokens: the control that spends a budget on the whole picture at a lower resolution."""

from dataclasses import dataclass

import torch

from onlooker.core.contracts import Compressor
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class LowerResolution(Compressor):
    """Averages neighbouring tokens until the grid has `side` rows, and as many columns or `across`.

    Models of a fixed input size have as many tokens for a small picture as for a large one, so the resolution is
    lowered where it costs: in the grid that the language model reads.
    """

    side: int = 4
    """Rows that are left, and columns unless `across` says otherwise."""
    across: int | None = None
    """Columns that are left."""

    def __post_init__(self) -> None:
        if min(self.side, self.across or self.side) < 1 or self.across == 0:
            given = f"side={self.side}, across={self.across}"
            raise InputError("a picture keeps one row and column at least", given=given, do="use 1 or more")

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """One token for each cell of the coarse grid."""
        rows, cols = tokens.grid
        down, across = min(self.side, rows), min(self.across or self.side, cols)
        cell = (tokens.row * down // rows) * across + tokens.col * across // cols
        _, group = torch.unique(cell, return_inverse=True)
        return tokens.merge(group)
