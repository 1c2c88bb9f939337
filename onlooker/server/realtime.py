"""OpenAI's Realtime events over a WebSocket, about a session of the caller's or one of the connection's own.

Pictures (`input_image`) are frames, user text is the question, `response.create` answers it. There is no sound.
"""

import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket

from onlooker.core.events import Answer
from onlooker.server.between import between_steps
from onlooker.server.bodies import Body, NoteBody, Sampling
from onlooker.server.channel import Channel, PushedFrame, Tasks, conversing, push_frame
from onlooker.server.feed import Missed
from onlooker.server.gate import refuse_socket
from onlooker.server.inline import picture_of
from onlooker.server.keys import Caller
from onlooker.server.notes import write_note
from onlooker.server.question import Question
from onlooker.server.refusals import Refusal, overloaded
from onlooker.server.service import Service, told
from onlooker.server.stream import Stream, StreamSettings
from onlooker.server.wire import answer_facts

Tokens = Annotated[int, Field(ge=1)] | Literal["inf"] | None
Modalities = list[Literal["text"]] | None


class SessionChange(Body):
    """What of OpenAI's session makes sense here."""

    type: Literal["realtime"] = "realtime"
    model: str | None = None
    instructions: str | None = Field(default=None, max_length=4000)
    max_output_tokens: Tokens = None
    output_modalities: Modalities = None


class SessionUpdate(Body):
    """Change how the following questions are answered."""

    type: Literal["session.update"]
    event_id: str | None = None
    session: SessionChange


class Content(Body):
    """Words or a picture."""

    type: Literal["input_text", "input_image"]
    text: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None


class Item(Body):
    """A message of the user or the system."""

    type: Literal["message"]
    role: Literal["user", "system"]
    content: list[Content] = Field(min_length=1, max_length=16)
    id: str | None = Field(default=None, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: str | None = None


class ItemCreate(Body):
    """Add a message."""

    type: Literal["conversation.item.create"]
    event_id: str | None = None
    previous_item_id: str | None = None
    item: Item


class ResponseWanted(Body):
    """How one answer is to be made."""

    instructions: str | None = Field(default=None, max_length=4000)
    max_output_tokens: Tokens = None
    output_modalities: Modalities = None
    conversation: Literal["auto", "none"] | None = None
    metadata: dict[str, str] | None = None
    input: list[Item] | None = Field(default=None, max_length=16)


class ResponseCreate(Body):
    """Answer the newest question."""

    type: Literal["response.create"]
    event_id: str | None = None
    response: ResponseWanted = ResponseWanted()


class ResponseCancel(Body):
    """Stop answering."""

    type: Literal["response.cancel"]
    event_id: str | None = None
    response_id: str | None = None


class NoteCreate(Body):
    """Write a text, or a soft prefix by name, into the session's memory: an event of our own."""

    type: Literal["onlooker.note.create"]
    event_id: str | None = None
    note: NoteBody


Said = SessionUpdate | ItemCreate | ResponseCreate | ResponseCancel | NoteCreate
_EVENT = TypeAdapter(Annotated[Said, Field(discriminator="type")])


def realtime_routes(service: Service) -> APIRouter:
    """The WebSocket of OpenAI's Realtime API."""
    routes = APIRouter()

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        caller = socket.state.caller
        session_id, model = socket.query_params.get("session_id"), socket.query_params.get("model", "")
        name, _, suffix = model.partition("@")
        session_id = session_id or suffix or None
        try:
            service.may_work()
            if name not in ("", service.settings.model):
                raise Refusal(404, "model_not_found", f"this server runs {service.settings.model}", param="model")
            if session_id is not None:
                stream = service.find(caller, session_id)
            else:
                stream = await service.open(caller, StreamSettings())
        except Refusal as refusal:
            await refuse_socket(refusal, socket)
            return
        try:
            channel = await Channel.accept(socket, service.limits.send_s)
            async with conversing(channel):
                await _Conversation(service, stream, channel, caller).run()
        finally:
            if session_id is None:
                await service.close(stream, "its connection ended")

    return routes


@dataclass
class _Response:
    """An answer under way."""

    question: Question
    wanted: ResponseWanted
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(10)}")
    item: str = field(default_factory=lambda: f"item_{secrets.token_hex(10)}")

    def as_dict(self, status: str, output: list[dict[str, Any]], more: dict[str, Any] | None = None) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": None,
            "output": output,
            "conversation_id": None,
            "output_modalities": ["text"],
            "max_output_tokens": self.question.decoding.max_new_tokens,
            "metadata": self.wanted.metadata,
            "usage": None,
        }
        return facts | (more or {})

    def message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [{"type": "output_text", "text": text}]
        head = {"id": self.item, "object": "realtime.item", "type": "message", "status": status}
        return head | {"role": "assistant", "content": content}


class _Conversation:
    """One connection."""

    def __init__(self, service: Service, stream: Stream, channel: Channel, caller: Caller) -> None:
        self._service, self._stream, self._channel, self._caller = service, stream, channel, caller
        self._tasks = Tasks()
        self._settings = SessionChange()
        self._question = ""
        self._last_item: str | None = None
        self._response: _Response | None = None

    async def run(self) -> None:
        await self._say("session.created", session=self._session())
        await self._tasks.run(self._listen(), self._forward())

    async def _say(self, kind: str, **facts: Any) -> None:
        await self._channel.say({"type": kind, "event_id": f"event_{secrets.token_hex(10)}"} | facts)

    async def _listen(self) -> None:
        async with contextlib.aclosing(self._channel.hear()) as messages:
            async for message in messages:
                event_id = message.get("event_id") if isinstance(message, dict) else None
                try:
                    if isinstance(message, Refusal):
                        raise message
                    if isinstance(message, PushedFrame):
                        await push_frame(self._service, self._stream, message)
                    else:
                        await self._obey(_EVENT.validate_python(message))
                except ValidationError as error:
                    await self._complain(_invalid(error), event_id)
                except Refusal as refusal:
                    await self._complain(refusal, event_id)

    async def _obey(self, event: Said) -> None:
        match event:
            case SessionUpdate():
                if event.session.model not in (None, self._service.settings.model):
                    raise Refusal(422, "model_not_found", f"this server runs {self._service.settings.model}")
                changed = event.session.model_dump(exclude_unset=True)
                self._settings = self._settings.model_copy(update=changed)
                await self._say("session.updated", session=self._session())
            case ItemCreate():
                await self._add(event.item)
            case ResponseCreate():
                await self._respond(event.response)
            case ResponseCancel():
                if self._response is None or event.response_id not in (None, self._response.id):
                    raise Refusal(422, "response_cancel_not_active", "there is no such response to cancel")
                self._response.question.cancel()
            case NoteCreate():
                self._service.find(self._caller, self._stream.id, own=True)
                written = await between_steps(self._service, self._stream, lambda: write_note(self._stream, event.note))
                await self._say("onlooker.note.created", note=written)

    async def _add(self, item: Item) -> None:
        await self._see(item)
        words = _words(item)
        if words and item.role == "user":
            self._question = words
        elif words:
            self._settings = self._settings.model_copy(update={"instructions": words})
        number = item.id or f"item_{secrets.token_hex(10)}"
        told_of = {"id": number, "object": "realtime.item", "type": "message", "status": "completed", "role": item.role}
        # Pictures are not sent back: they went into the stream.
        content = [
            part.model_dump(exclude_none=True, exclude={"image_url"})
            for part in item.content
            if part.type == "input_text"
        ]
        previous, self._last_item = self._last_item, number
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._say(kind, previous_item_id=previous, item=told_of | {"content": content})

    async def _see(self, item: Item) -> None:
        for part in item.content:
            if (part.type == "input_image") != (part.image_url is not None) or (part.text is None) != (
                part.type == "input_image"
            ):
                raise Refusal(422, "invalid_request", "input_text has text, input_image has image_url", param="content")
        for part in item.content:
            if part.image_url is not None:
                data, kind = picture_of(part.image_url, self._service.limits.frame_bytes)
                taken = await push_frame(self._service, self._stream, PushedFrame(data, kind, None))
                if taken is None:
                    why = "the picture was left out: too soon for the session's fps, or the server has too much to do"
                    raise overloaded("picture_left_out", why, 1)
                try:  # the item is done when it was seen, so that a question after it is about it
                    await taken
                except Exception as error:
                    raise told(error) from error

    async def _respond(self, wanted: ResponseWanted) -> None:
        if self._response is not None:
            code = "conversation_already_has_active_response"
            raise Refusal(409, code, "an answer is being written; cancel it or wait for response.done")
        asked = self._question
        for item in wanted.input or ():
            await self._see(item)
            asked = _words(item) or asked
        if not asked:
            raise Refusal(422, "no_question", "create an item with input_text first")
        instructions = wanted.instructions or self._settings.instructions
        most = wanted.max_output_tokens or self._settings.max_output_tokens
        sampling = Sampling(max_tokens=None if most == "inf" else most)
        text = f"{instructions}\n{asked}" if instructions else asked
        question = self._service.ask(self._stream, text, sampling, caller=self._caller)
        self._response = _Response(question, wanted)
        self._tasks.add(self._answer(self._response))

    async def _answer(self, response: _Response) -> None:
        place = {"response_id": response.id, "item_id": response.item, "output_index": 0, "content_index": 0}
        item_place = {"response_id": response.id, "output_index": 0}
        await self._say("response.created", response=response.as_dict("in_progress", []))
        started = response.message("in_progress", None)
        await self._say("response.output_item.added", **item_place, item=started)
        await self._say("conversation.item.added", previous_item_id=self._last_item, item=started)
        await self._say("response.content_part.added", **place, part={"type": "text", "text": ""})
        try:
            async with contextlib.aclosing(self._service.pieces(response.question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        await self._say("response.output_text.delta", **place, delta=piece)
                    else:
                        self._response = None
                        await self._finish(response, piece, place, item_place)
        except Refusal as refusal:
            self._response = None
            details = {"type": "failed", "error": {"type": "server_error", "code": refusal.code}}
            done = response.as_dict("failed", [], {"status_details": details})
            await self._complain(refusal, None)
            await self._say("response.done", response=done)

    async def _finish(
        self, response: _Response, answer: Answer, place: dict[str, Any], item_place: dict[str, Any]
    ) -> None:
        status = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}[answer.finish]
        message = response.message("completed" if status == "completed" else "incomplete", answer.text)
        await self._say("response.output_text.done", **place, text=answer.text)
        await self._say("response.content_part.done", **place, part={"type": "text", "text": answer.text})
        await self._say("response.output_item.done", **item_place, item=message)
        await self._say("conversation.item.done", previous_item_id=self._last_item, item=message)
        self._last_item = response.item
        read = answer.usage.context_tokens + answer.usage.prompt_tokens
        usage = {"input_tokens": read, "output_tokens": answer.usage.new_tokens}
        reasons = {"incomplete": "max_output_tokens", "cancelled": "client_cancelled"}
        more = {
            "usage": usage | {"total_tokens": read + answer.usage.new_tokens},
            "status_details": {"type": status} | ({"reason": reasons[status]} if status in reasons else {}),
            "onlooker": answer_facts(self._stream, answer),
        }
        await self._say("response.done", response=response.as_dict(status, [message], more))

    async def _forward(self) -> None:
        """What else happens, under our own names, until the session ends."""
        async with contextlib.aclosing(self._stream.events.read(self._stream.events.newest)) as items:
            async for numbered in items:
                assert numbered is not None, "read without pauses"
                item = numbered[1]
                if isinstance(item, Missed):
                    await self._say("onlooker.missed", count=item.count)
                elif item.kind in ("alert", "note", "source", "failed", "draining", "closed"):
                    await self._say(f"onlooker.{item.kind}", **{item.kind: item.facts})

    def _session(self) -> dict[str, Any]:
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self._stream.id,
            "model": self._service.settings.model,
            "output_modalities": ["text"],
            "instructions": self._settings.instructions or "",
            "max_output_tokens": self._settings.max_output_tokens or "inf",
        }

    async def _complain(self, refusal: Refusal, event_id: Any) -> None:
        error = refusal.body()["error"] | {"event_id": event_id if isinstance(event_id, str) else None}
        await self._say("error", error=error)


def _words(item: Item) -> str:
    return "\n".join(part.text for part in item.content if part.text)


def _invalid(error: ValidationError) -> Refusal:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"][1:]))[:200]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return Refusal(422, "unknown_event", "this event is not understood here: " + first["msg"][:200], param="type")
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return Refusal(422, code, f"{first['msg']} ({place})", param=place)
