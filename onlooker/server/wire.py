"""What leaves the server: events and answers as JSON, and server-sent events that notice when nobody reads."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from onlooker.core.events import Alert, Answer, FrameTaken


def frame_facts(event: FrameTaken, lag_s: float) -> dict[str, Any]:
    """A frame that was taken in."""
    return {
        "time_s": event.time_s,
        "number": event.number,
        "tokens_seen": event.tokens_seen,
        "tokens_kept": event.tokens_kept,
        "refreshed": event.refreshed,
        "held": event.held,
        "skipped": event.skipped,
        "recomputed_ratio": event.recomputed_ratio,
        "lag_s": round(lag_s, 4),
    }


class Clocked(Protocol):
    """A stream, as far as its events name it and tell the time of day."""

    id: str

    def wall_of(self, time_s: float) -> float | None:
        """The time of day of a moment of the stream, in seconds since the epoch; None when it is not known."""
        ...

    def warnings(self, time_s: float) -> list[str]:
        """Why what is said about this moment of the stream may not be trusted; nothing for moments that have passed."""
        ...


def answer_facts(stream: Clocked, answer: Answer) -> dict[str, Any]:
    """An answer, with where to find a picture of each moment it cites; `wall` is the time of day it is about."""
    return {
        "text": answer.text,
        "question": answer.question,
        "time_s": answer.time_s,
        "wall": stream.wall_of(answer.time_s),
        "citations": [
            {
                "start_s": cited.start_s,
                "end_s": cited.end_s,
                "share": round(cited.share, 4),
                "recalled": round(cited.recalled, 4),
                "thumbnail": thumbnail_path(stream.id, cited.end_s),
            }
            for cited in answer.citations
        ],
        "usage": {
            "context_tokens": answer.usage.context_tokens,
            "prompt_tokens": answer.usage.prompt_tokens,
            "new_tokens": answer.usage.new_tokens,
        },
        "timing": {
            "first_token_s": round(answer.timing.first_token_s, 4),
            "total_s": round(answer.timing.total_s, 4),
        },
        "finish": answer.finish,
        "warnings": stream.warnings(answer.time_s),
    }


def alert_facts(stream: Clocked, alert: Alert) -> dict[str, Any]:
    """An alert, with where to find a picture of it."""
    return {
        "rule": alert.rule,
        "prompt": alert.prompt,
        "time_s": alert.time_s,
        "wall": stream.wall_of(alert.time_s),
        "probability": alert.probability,
        "then": alert.then,
        "text": alert.text,
        "evidence_s": alert.evidence_s,
        "thumbnail": thumbnail_path(stream.id, alert.evidence_s),
    }


def thumbnail_path(stream_id: str, time_s: float) -> str:
    """Where the picture nearest to a moment is served."""
    return f"/v1/streaming/sessions/{stream_id}/frames/{time_s:.3f}.jpg"


def model_facts(name: str, created: float) -> dict[str, Any]:
    """A model as OpenAI's clients list it."""
    return {"id": name, "object": "model", "created": int(created), "owned_by": "onlooker"}


def model_list(model: str, sources: Iterable[str], created: float) -> dict[str, Any]:
    """The model, and the model looking at each source."""
    names = [model, *(f"{model}@{source}" for source in sources)]
    return {"object": "list", "data": [model_facts(name, created) for name in names]}


def sse(data: dict[str, Any] | str, event: str | None = None, number: str | None = None) -> str:
    """One server-sent event; text is sent as it is."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {event}\n" if event else "")
    body = data if isinstance(data, str) else json.dumps(data, allow_nan=False)
    return f"{head}data: {body}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events. A client that leaves them unread for `send_s` seconds is cut off.

    Its socket may be half open, and nothing else would ever tell.
    """

    def __init__(self, events: AsyncIterator[str], send_s: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._send_s = send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), self._send_s)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            raise SlowReader from None
        finally:
            # The generator holds the question: whatever ended the response, it must end now and not when collected.
            await self.body_iterator.aclose()  # pyright: ignore[reportAttributeAccessIssue] - always a generator here


async def until_gone(receive: Receive) -> None:
    """Wait until the client of a request has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


class SlowReader(Exception):
    """A client did not read what it was sent."""
