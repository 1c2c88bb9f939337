"""OpenAI's chat completions about a live session, a video or pictures, so that existing clients work as they are."""

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from onlooker.core.events import Answer
from onlooker.server.bodies import ChatBody, ImagePart, Message, Sampling, TextPart, VideoPart
from onlooker.server.inline import watch_pictures, watch_video
from onlooker.server.keys import Caller
from onlooker.server.question import Question
from onlooker.server.refusals import Refusal
from onlooker.server.service import Service
from onlooker.server.sessions import Asker
from onlooker.server.stream import Stream
from onlooker.server.wire import EventStream, answer_facts, sse

SESSION_HEADERS = ("x-session-id", "x-streaming-session")
MOST_PICTURES = 64


@dataclass(frozen=True)
class Asked:
    """What a conversation comes down to: a question, what to look at first, and what was not read."""

    text: str
    videos: tuple[str, ...]
    pictures: tuple[str, ...]
    notes: tuple[str, ...]


def chat_routes(service: Service) -> APIRouter:
    """Routes of OpenAI's API that are not sockets."""
    routes = APIRouter(prefix="/v1", tags=["openai"])
    model = {"id": service.settings.model, "object": "model", "created": int(time.time()), "owned_by": "onlooker"}

    @routes.get("/models")
    async def models(caller: Asker) -> dict[str, Any]:
        """The one model that runs here."""
        return {"object": "list", "data": [model]}

    @routes.get("/models/{name:path}")
    async def one_model(name: str, caller: Asker) -> dict[str, Any]:
        """That model."""
        _check_model(service, name)
        return model

    @routes.post("/chat/completions")
    async def complete(body: ChatBody, request: Request, caller: Asker) -> Response:
        """Answer the last message about a session, a video or pictures."""
        name, _, suffix = body.model.partition("@")
        _check_model(service, name)
        asked = read_messages(body.messages, body.onlooker is not None and body.onlooker.history)
        session_id = _session_id(request, body, suffix)
        stream, is_ours = await _look(service, caller, asked, session_id, body)
        try:
            ours = body.onlooker
            times = (ours.at, ours.since) if ours is not None else (None, None)
            question = service.ask(stream, asked.text, _sampling(body), *times)
            reply = _Reply(service, stream, body, asked, is_ours)
            if body.stream:
                is_ours = False  # the reply closes the session when it is over
                return EventStream(reply.streamed(question), service.limits.send_s)
            return JSONResponse(reply.whole(await service.answer(question, request)))
        finally:
            if is_ours:
                await service.close(stream, "its question was answered")

    return routes


class _Reply:
    """A chat completion, whole or in chunks."""

    def __init__(self, service: Service, stream: Stream, body: ChatBody, asked: Asked, closes: bool) -> None:
        self._service, self._stream, self._asked, self._closes = service, stream, asked, closes
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The completion as one object."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
        reply = {
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(answer),
            "onlooker": self._more(answer),
        }
        return self._head | reply

    async def streamed(self, question: Question) -> AsyncGenerator[str]:
        """The completion in chunks, as server-sent events."""
        try:
            async with contextlib.aclosing(self._service.pieces(question)) as pieces:
                yield self._chunk({"role": "assistant", "content": ""})
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield self._chunk({"content": piece})
                        continue
                    yield self._chunk({}, finish=_finish(piece), more=self._more(piece))
                    if self._wants_usage:
                        usage = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(piece)}
                        yield sse(json.dumps(self._head | usage))
                    yield sse("[DONE]")
        except Refusal as refusal:
            yield sse(refusal.body())
        finally:
            if self._closes:
                await self._service.close(self._stream, "its question was answered")

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, more: dict[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        ours = {} if more is None else {"onlooker": more}
        return sse(self._head | {"object": "chat.completion.chunk", "choices": [choice]} | ours)

    def _more(self, answer: Answer) -> dict[str, Any]:
        facts = answer_facts(self._stream.id, answer)
        session = {} if self._closes else {"session_id": self._stream.id}
        names = ("time_s", "citations", "timing")
        if self._closes:  # the session is gone when this is read, and its pictures with it
            facts["citations"] = [
                {name: value for name, value in cited.items() if name != "thumbnail"} for cited in facts["citations"]
            ]
        return session | {name: facts[name] for name in names} | {"notes": list(self._asked.notes)}


def read_messages(messages: list[Message], history: bool) -> Asked:
    """The question of a conversation: its last user message, after the system's words.

    The models here answer one question at a time. Earlier turns are left out, which a note says, or, with `history`,
    written before the question. Raises `Refusal` (422) when there is nothing to answer.
    """
    last = messages[-1]
    if last.role != "user":
        raise Refusal(422, "no_question", "the last message must be the user's", param="messages")
    if any(message.role == "assistant" and not isinstance(message.content, str) for message in messages):
        raise Refusal(422, "invalid_request", "an assistant's message is text", param="messages")
    system = [_text(message) for message in messages if message.role in ("system", "developer")]
    earlier = [message for message in messages[:-1] if message.role in ("user", "assistant")]
    notes = []
    lines = [*filter(None, system)]
    if history:
        lines += [f"{message.role}: {_text(message)}" for message in earlier]
    elif earlier:
        notes.append(f"{len(earlier)} earlier messages were not read; 'onlooker': {{'history': true}} puts them first")
    lines.append(_text(last))
    parts = [] if isinstance(last.content, str) else last.content
    return Asked(
        text="\n".join(lines),
        videos=tuple(part.video_url.url for part in parts if isinstance(part, VideoPart)),
        pictures=tuple(part.image_url.url for part in parts if isinstance(part, ImagePart)),
        notes=tuple(notes),
    )


async def _look(
    service: Service, caller: Caller, asked: Asked, session_id: str | None, body: ChatBody
) -> tuple[Stream, bool]:
    """The session to ask, and whether it was made for this question alone."""
    ways = [bool(session_id), bool(asked.videos), bool(asked.pictures)]
    if sum(ways) != 1 or len(asked.videos) > 1:
        raise Refusal(
            422,
            "nothing_to_look_at" if not any(ways) else "too_much_to_look_at",
            "ask about one thing: a session (body field 'session_id', header 'x-session-id' or model 'NAME@SESSION'), "
            "one video_url part, or image_url parts",
        )
    if session_id:
        return service.find(caller, session_id), False
    if asked.videos:
        fps = (body.onlooker.fps if body.onlooker is not None else None) or 1.0
        return await watch_video(service, caller, asked.videos[0], fps), True
    if len(asked.pictures) > MOST_PICTURES:
        raise Refusal(413, "too_many_pictures", f"at most {MOST_PICTURES} pictures are looked at")
    return await watch_pictures(service, caller, list(asked.pictures)), True


def _session_id(request: Request, body: ChatBody, suffix: str) -> str | None:
    headers = [request.headers.get(name) for name in SESSION_HEADERS]
    given = {name for name in (body.session_id, suffix, *headers) if name}
    if len(given) > 1:
        raise Refusal(422, "two_sessions", "the request names two sessions", param="session_id")
    return given.pop() if given else None


def _check_model(service: Service, name: str) -> None:
    if name != service.settings.model:
        given = f"this server runs {service.settings.model!r}; given: {name[:80]!r}"
        raise Refusal(404, "model_not_found", given, param="model")


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _sampling(body: ChatBody) -> Sampling:
    return Sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
    )


def _finish(answer: Answer) -> str:
    return "length" if answer.finish == "length" else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    read = answer.usage.context_tokens + answer.usage.prompt_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": answer.usage.new_tokens,
        "total_tokens": read + answer.usage.new_tokens,
    }
