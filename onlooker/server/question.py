"""A question on its way through the server: put on the event loop, answered by the worker."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode
from starlette.requests import Request

from onlooker.core.events import Answer
from onlooker.engine import Decoding
from onlooker.server.bodies import Sampling
from onlooker.server.feed import Feed
from onlooker.server.refusals import Refusal
from onlooker.server.stops import Stops
from onlooker.server.stream import Stream
from onlooker.server.wire import until_gone

SCHEMA_CHARS = 32_000
"""Longest JSON schema of an answer."""


USUAL_TOKENS = 64
"""Longest answer of a request that names no length."""


def check_words(text: str, most_chars: int) -> None:
    """Raise `Refusal` unless this can be asked: words, valid Unicode, and not too many."""
    if not text.strip():
        raise Refusal(422, "empty_question", "a question needs words", param="question")
    if len(text) > most_chars:
        raise Refusal(413, "question_too_long", f"a question has at most {most_chars} characters; given: {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(422, "invalid_input", "the question is not valid Unicode", param="question") from None


def decoding_of(sampling: Sampling, most_tokens: int) -> Decoding:
    """How a request wants its answer decoded. Raises `Refusal` (413) for a schema that is too long."""
    schema = None if sampling.json_schema is None else json.dumps(sampling.json_schema)
    if schema is not None and len(schema) > SCHEMA_CHARS:
        raise Refusal(413, "schema_too_long", f"a schema has at most {SCHEMA_CHARS} characters; given: {len(schema)}")
    # More than may be is as much as may be, as other servers have it; `finish` tells that it was cut.
    longest = min(USUAL_TOKENS if sampling.max_tokens is None else sampling.max_tokens, most_tokens)
    return Decoding(longest, sampling.temperature, sampling.top_p, sampling.seed, schema=schema)


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
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    standing: str | None = None
    """Name of the standing question it is, if the server asks by itself."""
    put_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    span: Span = INVALID_SPAN
    """What is recorded of it (see `Tracing`)."""

    def __post_init__(self) -> None:
        # Room for every piece: nothing of an answer is ever dropped.
        self.pieces: Feed[str | Answer | Exception] = Feed(self.decoding.max_new_tokens + 8)
        self._stops = Stops(self.stop)

    def say(self, text: str) -> bool:
        """Hand over what was written; whether the answer ends here, at one of its stop sequences."""
        if said := self._stops.feed(text):
            self.pieces.add(said)
        return self._stops.reached

    def whole(self, answer: Answer) -> Answer:
        """The answer as it was asked for: up to where it was to stop. Hands over the text that still waited."""
        if waited := self._stops.flush():
            self.pieces.add(waited)
        return replace(answer, text=self._stops.said.strip(), finish="stop") if self._stops.reached else answer

    def cancel(self) -> None:
        """Nobody waits for this any more. The worker stops it before its next step."""
        self.cancelled = True

    def end(self, last: Answer | Exception) -> None:
        """Hand over what ends it."""
        if isinstance(last, Exception):
            self.span.set_status(Status(StatusCode.ERROR, type(last).__name__))
        self.span.end()
        self.pieces.add(last)
        self.pieces.close()


async def cancel_when_gone(request: Request, question: Question, wake: Callable[[], None]) -> None:
    """Wait until the client of a request has hung up, and cancel its question then."""
    await until_gone(request.receive)
    question.cancel()
    wake()
