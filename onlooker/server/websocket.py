"""Frames in, tokens out, on one WebSocket with credit for frames."""

import asyncio
import contextlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket

from onlooker.core.events import Answer
from onlooker.server.between import between_steps
from onlooker.server.bodies import AskBody, Body, NoteBody
from onlooker.server.channel import Channel, PushedFrame, Tasks, conversing, push_frame
from onlooker.server.feed import Missed
from onlooker.server.gate import refuse_socket
from onlooker.server.keys import Caller
from onlooker.server.notes import write_note
from onlooker.server.question import Question
from onlooker.server.refusals import Refusal
from onlooker.server.service import Service, told
from onlooker.server.stream import Stream
from onlooker.server.wire import answer_facts

CREDIT = {"freshest": 2, "every": 16}
"""Frames a client may have under way: one in the model's hands, the others waiting."""
FORWARDED = ("frame", "alert", "note", "source", "serving", "failed", "draining", "stats", "closed")


class AskMessage(AskBody):
    """A question; `id` comes back with its answer."""

    type: Literal["ask"]
    id: str = Field(max_length=120)
    stream: Literal[True] = True


class CancelMessage(Body):
    """Stop a question."""

    type: Literal["cancel"]
    id: str = Field(max_length=120)


class NoteMessage(NoteBody):
    """A text, or a soft prefix by name, for the memory; `id` comes back when it is there."""

    type: Literal["note"]
    id: str = Field(max_length=120)


Message = AskMessage | CancelMessage | NoteMessage
_MESSAGE = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def socket_routes(service: Service) -> APIRouter:
    """The WebSocket of a session."""
    routes = APIRouter()

    @routes.websocket("/v1/streaming/sessions/{session_id}/socket")
    async def talk(socket: WebSocket, session_id: str) -> None:
        try:
            stream = service.find(socket.state.caller, session_id)
            service.may_work()
        except Refusal as refusal:
            await refuse_socket(refusal, socket)
            return
        channel = await Channel.accept(socket, service.limits.send_s)
        async with conversing(channel):
            await _Talk(service, stream, channel, socket.state.caller).run()

    return routes


class _Talk:
    """One connection to one session."""

    def __init__(self, service: Service, stream: Stream, channel: Channel, caller: Caller) -> None:
        self._service, self._stream, self._channel, self._caller = service, stream, channel, caller
        self._credit = CREDIT[stream.settings.policy]
        self._tasks = Tasks()
        self._questions: dict[str, Question] = {}

    async def run(self) -> None:
        await self._channel.say({"type": "ready", "session_id": self._stream.id, "credit": self._credit})
        await self._tasks.run(self._listen(), self._forward())

    async def _listen(self) -> None:
        async with contextlib.aclosing(self._channel.hear()) as messages:
            async for message in messages:
                asked = None
                try:
                    if isinstance(message, Refusal):
                        raise message
                    if isinstance(message, PushedFrame):
                        await self._take(message)
                        continue
                    asked = message.get("id") if isinstance(message.get("id"), str) else None
                    self._obey(_MESSAGE.validate_python(message))
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(map(str, first["loc"][1:]))
                    await self._complain(Refusal(422, "invalid_message", f"{first['msg']} ({place})"), asked)
                except Refusal as refusal:
                    await self._complain(refusal, asked)

    async def _take(self, frame: PushedFrame) -> None:
        if self._credit == 0:
            self._stream.counts.received += 1
            self._stream.counts.without_credit += 1
            return
        self._credit -= 1
        try:
            taken = await push_frame(self._service, self._stream, frame)
        except BaseException:
            await self._give_credit()
            raise
        if taken is None:
            await self._give_credit()
        else:
            self._tasks.add(self._give_credit_after(taken))

    async def _give_credit_after(self, taken: "asyncio.Future[Any]") -> None:
        with contextlib.suppress(Exception):  # what became of the frame is told by an event
            await taken
        await self._give_credit()

    async def _give_credit(self) -> None:
        self._credit += 1
        await self._channel.say({"type": "credit", "frames": 1})

    def _obey(self, message: Message) -> None:
        match message:
            case CancelMessage():
                if message.id in self._questions:
                    self._questions[message.id].cancel()
            case NoteMessage():
                self._service.find(self._caller, self._stream.id, own=True)
                self._tasks.add(self._note(message))
            case AskMessage():
                self._ask(message)

    async def _note(self, message: NoteMessage) -> None:
        try:
            facts = await between_steps(self._service, self._stream, lambda: write_note(self._stream, message))
        except Refusal as refusal:
            await self._complain(refusal, message.id)
        else:
            await self._channel.say({"type": "noted", "id": message.id, "note": facts})

    def _ask(self, message: AskMessage) -> None:
        if message.id in self._questions:
            raise Refusal(409, "id_in_use", "a question with this id is in flight", param="id")
        times = (message.at, message.since)
        question = self._service.ask(self._stream, message.question, message, *times, caller=self._caller)
        self._questions[message.id] = question
        self._tasks.add(self._answer(message.id, question))

    async def _answer(self, number: str, question: Question) -> None:
        try:
            async with contextlib.aclosing(self._service.pieces(question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Answer):
                        facts = answer_facts(self._stream, piece)
                        await self._channel.say({"type": "answer", "id": number, "answer": facts})
                    else:
                        await self._channel.say({"type": "delta", "id": number, "text": piece})
        except Refusal as refusal:
            await self._complain(refusal, number)
        finally:
            del self._questions[number]

    async def _forward(self) -> None:
        """Events of the session, until it ends."""
        async with contextlib.aclosing(self._stream.events.read(self._stream.events.newest)) as items:
            async for numbered in items:
                assert numbered is not None, "read without pauses"
                item = numbered[1]
                if isinstance(item, Missed):
                    await self._channel.say({"type": "missed", "count": item.count})
                elif item.kind in FORWARDED:
                    await self._channel.say({"type": item.kind} | item.facts)

    async def _complain(self, error: Exception, number: str | None) -> None:
        await self._channel.say({"type": "error", "id": number} | told(error).body())
