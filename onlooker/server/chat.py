"""OpenAI's chat completions about a live session, a video or pictures, so that existing clients work as they are."""

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from onlooker.core.events import Answer
from onlooker.server.bodies import Sampling
from onlooker.server.chat_body import Asked, ChatBody, Message
from onlooker.server.inline import watch_pictures, watch_video
from onlooker.server.keys import Caller
from onlooker.server.question import Question
from onlooker.server.refusals import Refusal
from onlooker.server.service import Service
from onlooker.server.sessions import Asker
from onlooker.server.stream import Stream
from onlooker.server.wire import EventStream, answer_facts, model_facts, model_list, sse

SESSION_HEADERS = ("x-session-id", "x-streaming-session")
MOST_PICTURES = 64


def chat_routes(service: Service) -> APIRouter:
    """Routes of OpenAI's API that are not sockets."""
    routes = APIRouter(prefix="/v1", tags=["openai"])
    began = time.time()

    @routes.get("/models")
    async def models(caller: Asker) -> dict[str, Any]:
        """The one model that runs here, and the model looking at each source: MODEL@SOURCE."""
        return model_list(service.settings.model, [source.name for source in service.watched.sources], began)

    @routes.get("/models/{name:path}")
    async def one_model(name: str, caller: Asker) -> dict[str, Any]:
        """That model, or that model looking at a source or a session of yours."""
        model, at, session_id = name.partition("@")
        check_model(service, model)
        if at and session_id not in service.watched:
            service.find(caller, session_id)
        return model_facts(name, began)

    @routes.post("/chat/completions")
    async def complete(body: ChatBody, request: Request, caller: Asker) -> Response:
        """Answer the last message about a session, a video or pictures."""
        name, _, suffix = body.model.partition("@")
        check_model(service, name)
        asked = read_messages(body.messages, body.onlooker.history)
        session_id = session_of(request, body.session_id, suffix)
        stream, is_ours = await look(service, caller, asked, session_id, body.onlooker.fps)
        try:
            times = (body.onlooker.at, body.onlooker.since)
            question = service.ask(stream, asked.text, _sampling(body), *times, caller=caller)
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
        self._wants_usage = body.stream_options.include_usage
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        if body.service_tier is not None:
            self._head["service_tier"] = "default"

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
        return more_facts(self._stream, self._asked, answer, self._closes)


def more_facts(stream: Stream, asked: Asked, answer: Answer, closes: bool) -> dict[str, Any]:
    """What we tell beside OpenAI's own fields; `closes` is whether the session ends with its answer."""
    facts = answer_facts(stream, answer)
    session = {} if closes else {"session_id": stream.id}
    names = ("time_s", "citations", "timing", "warnings")
    if closes:  # the session is gone when this is read, and its pictures with it
        facts["citations"] = [
            {name: value for name, value in cited.items() if name != "thumbnail"} for cited in facts["citations"]
        ]
    return session | {name: facts[name] for name in names} | {"notes": list(asked.notes)}


def read_messages(messages: list[Message], history: bool) -> Asked:
    """The question of a conversation: its last user message, after the system's words.

    The models here answer one question at a time. Earlier turns are left out, which a note says, or, with `history`,
    written before the question. What was shown earlier is looked at again: all pictures in their order, or the newest
    video. Raises `Refusal` (422) when there is nothing to answer.
    """
    last = messages[-1]
    if last.role != "user":
        raise Refusal(422, "no_question", "the last message must be the user's", param="messages")
    system = [message.text for message in messages if message.role in ("system", "developer")]
    earlier = [message for message in messages[:-1] if message.role in ("user", "assistant")]
    notes = []
    lines = [*filter(None, system)]
    if history:
        lines += [f"{message.role}: {message.text}" for message in earlier if message.text]
    elif earlier:
        notes.append(f"{len(earlier)} earlier messages were not read; 'onlooker': {{'history': true}} puts them first")
    lines.append(last.text)
    showing = [message for message in messages if message.videos or message.pictures]
    seen = [showing[-1]] if any(message.videos for message in showing) else showing
    if left := len(showing) - len(seen):
        notes.append(f"what {left} earlier messages showed was not looked at again: a video is looked at alone")
    return Asked(
        text="\n".join(lines),
        videos=tuple(url for message in seen for url in message.videos),
        pictures=tuple(url for message in seen for url in message.pictures),
        notes=tuple(notes),
        is_new=bool(last.videos or last.pictures),
    )


async def look(
    service: Service, caller: Caller, asked: Asked, session_id: str | None, fps: float | None
) -> tuple[Stream, bool]:
    """The session to ask, and whether it was made for this question alone; a video is looked at `fps` times a second.

    Raises `Refusal`.
    """
    if session_id and not asked.is_new:  # what earlier messages showed is not what this one asks about
        return service.find(caller, session_id), False
    ways = [bool(session_id), bool(asked.videos), bool(asked.pictures)]
    if sum(ways) != 1 or len(asked.videos) > 1:
        raise Refusal(
            422,
            "nothing_to_look_at" if not any(ways) else "too_much_to_look_at",
            "ask about one thing: a session (body field 'session_id', header 'x-session-id' or model 'NAME@SESSION'), "
            "one video_url part, or image_url parts",
        )
    if asked.videos:
        return await watch_video(service, caller, asked.videos[0], fps or 1.0), True
    if len(asked.pictures) > MOST_PICTURES:
        raise Refusal(413, "too_many_pictures", f"at most {MOST_PICTURES} pictures are looked at")
    return await watch_pictures(service, caller, list(asked.pictures)), True


def session_of(request: Request, named: str | None, suffix: str) -> str | None:
    """The session that a request names, in its body, its headers or behind the model. Raises `Refusal` for two."""
    headers = [request.headers.get(name) for name in SESSION_HEADERS]
    given = {name for name in (named, suffix, *headers) if name}
    if len(given) > 1:
        raise Refusal(422, "two_sessions", "the request names two sessions", param="session_id")
    return given.pop() if given else None


def check_model(service: Service, name: str) -> None:
    """Raise `Refusal` (404) for another model than the one that runs here."""
    if name != service.settings.model:
        given = f"this server runs {service.settings.model!r}; given: {name[:80]!r}"
        raise Refusal(404, "model_not_found", given, param="model")


def _sampling(body: ChatBody) -> Sampling:
    return Sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=body.stop,
        json_schema=body.response_format,
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
