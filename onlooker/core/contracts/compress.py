"""What a compressor fills in."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from onlooker.core.contracts.method import Method
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


class Compressor(Method):
    """Keeps only the telling visual tokens of each frame, before the language model. Causal: emission is final."""

    whole_frames: ClassVar[bool] = False
    """True for a method that compares places of the grid between frames: it can only be the first of a chain."""

    @abstractmethod
    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens to keep of the newest frame of one stream, in order; `state` is updated."""

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The newest frame of several streams. Methods may override this to work on all of them at once."""
        return [self.compress(tokens, state) for tokens, state in zip(batch, states, strict=True)]
