"""A question on its way through the server: put on the event loop, answered by the worker."""

import time
from dataclasses import dataclass, field

from onlooker.core.events import Answer
from onlooker.engine import Decoding
from onlooker.server.feed import Feed
from onlooker.server.stream import Stream


@dataclass
class Question:
    """A question on its way: what is asked, and the feed its answer comes through.

    The feed's items are `str` (pieces of text), then one `Answer` or one `Exception`; then it is closed.
    """

    stream: Stream
    text: str
    decoding: Decoding
    at_s: float | None = None
    since_s: float | None = None
    put_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def __post_init__(self) -> None:
        # Room for every piece: nothing of an answer is ever dropped.
        self.pieces: Feed[str | Answer | Exception] = Feed(self.decoding.max_new_tokens + 8)

    def cancel(self) -> None:
        """Nobody waits for this any more. The worker stops it before its next step."""
        self.cancelled = True

    def end(self, last: Answer | Exception) -> None:
        """Hand over what ends it."""
        self.pieces.add(last)
        self.pieces.close()
