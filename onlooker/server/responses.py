"""OpenAI's Responses API about a live session, a video or pictures; replies are kept for a while to go on from."""

import contextlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from onlooker.core.events import Answer
from onlooker.server.bodies import Sampling
from onlooker.server.chat import check_model, look, more_facts, read_messages, session_of
from onlooker.server.chat_body import Asked, Message
from onlooker.server.keys import Caller
from onlooker.server.question import Question
from onlooker.server.refusals import Refusal
from onlooker.server.responses_body import ResponsesBody
from onlooker.server.service import Service
from onlooker.server.sessions import Asker
from onlooker.server.stream import Stream
from onlooker.server.wire import EventStream, sse

KEPT, KEPT_BYTES = 512, 64 * 2**20
"""Replies that are kept to go on from, and bytes of what their conversations showed; the oldest go."""
Facts = dict[str, Any]


@dataclass(frozen=True)
class _Kept:
    owner: str
    reply: Facts
    messages: tuple[Message, ...]
    """The conversation up to this reply, which is its last message."""
    num_bytes: int


class Replies:
    """Replies to go on from, each its caller's own."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._num_bytes = 0

    def keep(self, owner: Caller, reply: Facts, messages: list[Message]) -> None:
        """Keep a reply and the conversation that led to it."""
        size = sum(len(message.model_dump_json()) for message in messages)
        self._kept[reply["id"]] = _Kept(owner.name, reply, tuple(messages), size)
        self._num_bytes += size
        while len(self._kept) > KEPT or (self._num_bytes > KEPT_BYTES and len(self._kept) > 1):
            self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def find(self, owner: Caller, number: str, param: str = "response_id") -> _Kept:
        """A reply of this caller. Raises `Refusal` (404) if there is none of theirs, or none any more."""
        kept = self._kept.get(number)
        if kept is None or kept.owner != owner.name:
            why = f"there is no reply {number[:80]!r}, or none any more"
            code = "not_found" if param == "response_id" else "previous_response_not_found"
            raise Refusal(404, code, why, param=param)
        return kept

    def delete(self, owner: Caller, number: str) -> None:
        """Let a reply go. Raises `Refusal` (404) as `find` does."""
        self._num_bytes -= self.find(owner, number).num_bytes
        del self._kept[number]


def responses_routes(service: Service) -> APIRouter:
    """Routes under /v1/responses."""
    routes = APIRouter(prefix="/v1/responses", tags=["openai"])
    replies = Replies()

    @routes.post("")
    async def respond(body: ResponsesBody, request: Request, caller: Asker) -> Response:
        """Answer the last message about a session, a video or pictures, and those of earlier replies."""
        name, _, suffix = body.model.partition("@")
        check_model(service, name)
        before = body.previous_response_id
        earlier = [] if before is None else list(replies.find(caller, before, "previous_response_id").messages)
        messages = earlier + body.messages()
        told = [] if body.instructions is None else [Message(role="system", content=body.instructions)]
        asked = read_messages(told + messages, body.onlooker.history)
        session_id = session_of(request, body.session_id, suffix)
        stream, is_ours = await look(service, caller, asked, session_id, body.onlooker.fps)
        try:
            times = (body.onlooker.at, body.onlooker.since)
            sampling = Sampling(
                max_tokens=body.max_output_tokens,
                temperature=body.temperature,
                top_p=body.top_p,
                seed=body.seed,
                stop=body.stop,
                json_schema=body.text.format,
            )
            question = service.ask(stream, asked.text, sampling, *times, caller=caller)
            reply = _Reply(service, stream, body, asked, is_ours)

            def keep(done: Facts) -> None:
                if body.store:
                    said = Message(role="assistant", content=done["output"][0]["content"][0]["text"])
                    replies.keep(caller, done, [*messages, said])

            if body.stream:
                is_ours = False  # the reply closes the session when it is over
                return EventStream(reply.streamed(question, keep), service.limits.send_s)
            done = reply.whole(await service.answer(question, request))
            keep(done)
            return JSONResponse(done)
        finally:
            if is_ours:
                await service.close(stream, "its question was answered")

    @routes.get("/{response_id}")
    async def kept(response_id: str, caller: Asker) -> Facts:
        """A reply that was kept."""
        return replies.find(caller, response_id).reply

    @routes.delete("/{response_id}")
    async def delete(response_id: str, caller: Asker) -> Facts:
        """Let a kept reply go."""
        replies.delete(caller, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return routes


class _Reply:
    """A response, whole or as events."""

    def __init__(self, service: Service, stream: Stream, body: ResponsesBody, asked: Asked, closes: bool) -> None:
        self._service, self._stream, self._asked, self._closes = service, stream, asked, closes
        # The name of the worker is in it, so that a router finds who keeps it.
        self._id = f"resp_{service.settings.worker}.{secrets.token_hex(12)}"
        self._item_id, self._number = f"msg_{secrets.token_hex(12)}", -1
        names = ("model", "instructions", "metadata", "temperature", "top_p", "max_output_tokens")
        self._head: Facts = {
            "id": self._id,
            "object": "response",
            "created_at": int(time.time()),
            **{name: getattr(body, name) for name in (*names, "previous_response_id", "store", "user")},
            "background": False,
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "text": {"format": _format(body.text.format)},
            "tool_choice": "auto",
            "tools": [],
            "truncation": body.truncation or "disabled",
            "service_tier": "default",
        }

    def whole(self, answer: Answer) -> Facts:
        """The response as one object."""
        is_cut = answer.finish == "length"
        read = answer.usage.context_tokens + answer.usage.prompt_tokens
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answer.usage.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + answer.usage.new_tokens,
        }
        return self._head | {
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._item("incomplete" if is_cut else "completed", answer.text)],
            "usage": usage,
            "onlooker": more_facts(self._stream, self._asked, answer, self._closes),
        }

    async def streamed(self, question: Question, keep: Any) -> AsyncGenerator[str]:
        """The response as server-sent events."""
        begun = self._head | {"status": "in_progress", "output": [], "usage": None}
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        try:
            async with contextlib.aclosing(self._service.pieces(question)) as pieces:
                yield self._event("response.created", response=begun)
                yield self._event("response.in_progress", response=begun)
                item = self._item("in_progress", None)
                yield self._event("response.output_item.added", output_index=0, item=item)
                yield self._event("response.content_part.added", **place, part=_part(""))
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield self._event("response.output_text.delta", **place, delta=piece, logprobs=[])
                        continue
                    done = self.whole(piece)
                    yield self._event("response.output_text.done", **place, text=piece.text, logprobs=[])
                    yield self._event("response.content_part.done", **place, part=_part(piece.text))
                    yield self._event("response.output_item.done", output_index=0, item=done["output"][0])
                    keep(done)
                    yield self._event(f"response.{done['status']}", response=done)
        except Refusal as refusal:
            error = {"code": refusal.code, "message": refusal.message}
            yield self._event("response.failed", response=begun | {"status": "failed", "error": error})
        finally:
            if self._closes:
                await self._service.close(self._stream, "its question was answered")

    def _event(self, kind: str, **facts: Any) -> str:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number} | facts, kind)

    def _item(self, status: str, text: str | None) -> Facts:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def _format(schema: Facts | None) -> Facts:
    words = {"type": "text"}
    return words if schema is None else {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}


def _part(text: str) -> Facts:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
