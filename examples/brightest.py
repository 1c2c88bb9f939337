"""A compressor of your own in a file: keep the tokens with the largest norm.

Run it with `onlooker ask synthetic:3 "which shape is at the top now?" --compressor examples/brightest.py:keep=12`.
"""

from dataclasses import dataclass

from onlooker.compress import best, num_kept
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Brightest(Compressor):
    """Large tokens draw attention; this asks nothing about the past, so it has no state."""

    keep: int = 16
    """Tokens to keep of each frame."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The `keep` tokens with the largest norm."""
        size = tokens.features.float().norm(dim=-1)
        return tokens.select(best(size, num_kept(len(tokens), self.keep, None)))
