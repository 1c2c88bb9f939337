"""An oracle token selector: keeps the tokens that cover what the world truly shows. A bound, and no method."""

from dataclasses import dataclass, field

import numpy as np
import torch

from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.evals.item import Item


@dataclass
class OracleState(StreamState):
    """Which item a stream shows; the harness says so before the first frame."""

    item: Item | None = None

    def fork(self) -> "OracleState":
        return OracleState(self.item)

    def num_bytes(self) -> int:
        return 0


@dataclass(frozen=True)
class OracleTokens(Compressor):
    """Ground-truth selection at a budget: if it does not beat random there, no selection can, and the suite is blind to
    selection. Where the world shows fewer things than the budget, the rest is spread evenly."""

    keep: int = 15
    """Tokens to keep of each frame."""
    seed: int = field(default=0)
    """Number that the order of tokens without any thing on them starts from."""

    def new_state(self) -> OracleState:
        """Empty: `feed` tells it what is shown."""
        return OracleState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens with the greatest true cover; ties by a fixed lot."""
        assert isinstance(state, OracleState) and state.item is not None, "the oracle was not told what it sees"
        cover = state.item.cover
        assert cover is not None, f"{state.item.video.id} has no ground truth"
        if self.keep >= len(tokens):
            return tokens
        shown = cover(float(tokens.time_s[0]), tokens.grid).reshape(-1)
        lots = np.random.default_rng((self.seed, int(tokens.frame[0]))).random(len(shown))
        order = np.lexsort((lots, -shown))[: self.keep]
        return tokens.select(torch.as_tensor(np.sort(order), device=tokens.features.device))


def feed(state: StreamState, item: Item) -> None:
    """Tell an oracle's state what its stream will show; other states are left alone."""
    if isinstance(state, OracleState):
        state.item = item
