"""What a compressor fills in."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from onlooker.core.contracts.method import Method
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

Compress = Callable[[Sequence[VisualTokens], Sequence[StreamState]], list[VisualTokens]]
"""One frame of each of some streams, and their states, to what is given out of each (`Compressor.compress_streams`)."""


class Compressor(Method):
    """Keeps only the telling visual tokens of each frame, before the language model. Causal: emission is final.

    Most give out a frame's tokens at once. Three further forms are allowed:

    - Nothing. A frame of which no token is kept is not read at all: it has no block, no time mark and no position.
    - Late. A method that looks ahead says by how many frames at most (`lookahead`), how many it holds now (`num_held`),
      and what it would give out if the stream ended here (`flush`): a question reads that, and cites it.
    - Several frames together, oldest first, each at most once. Each becomes a block of its own, under its own time.

    A frame here is what goes through the tower at once: a pair of pictures in models that read pairs.
    """

    @property
    def lookahead(self) -> int:
        """Frames that may come, at most, between a frame and the one with which it is given out; 0: never any."""
        return 0

    whole_frames: ClassVar[bool] = False
    """True for a method that compares places of the grid between frames: it can only be the first of a chain."""

    @abstractmethod
    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """What is given out now that the newest frame of one stream has come, in order; `state` is updated.

        Of a method without `lookahead`, tokens of that frame. All tokens have one grid: a method that holds frames of
        another size gives those out, and holds the new one.
        """

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The newest frame of several streams. Methods may override this to work on all of them at once."""
        return [self.compress(tokens, state) for tokens, state in zip(batch, states, strict=True)]

    def prepare(
        self, like: VisualTokens, most_streams: int, on_step: Callable[[str], None], capture: bool = True
    ) -> Compress:
        """`compress_streams`, with steps of fixed shape for up to so many streams of frames like this one, captured as
        graphs on CUDA (not without `capture`); what does not fit them is done as it is. By default there are none.

        `on_step` is told the name of every step when it is ready. Raises `ModelError` where a step cannot be captured.
        """
        return self.compress_streams

    def num_held(self, state: StreamState) -> int:
        """How many of the newest frames are not given out yet, at most `lookahead`."""
        return 0

    def flush(self, state: StreamState) -> VisualTokens | None:
        """All that is held, given out as if no frame came any more; nothing is held afterwards. None if nothing was.

        Called on a fork of the state for a question, and on the state itself when a note has to come behind what was
        seen.
        """
        return None
