"""One WebSocket: JSON out, frames and JSON in, never waiting for a client that does not read."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from onlooker.server.refusals import Refusal
from onlooker.server.service import Service, told
from onlooker.server.stream import Stream
from onlooker.server.wire import SlowReader

HEADER = struct.Struct("<qII")
"""Before the picture of a binary message: microseconds of stream time (-1: time of arrival), flags, nothing."""
SUBPROTOCOLS = ("onlooker", "realtime")
MAGIC = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WEBP"}
BYE = 1012
"""Close code: the service restarts."""


@dataclass(frozen=True)
class PushedFrame:
    """A binary message, not decoded yet."""

    data: bytes
    kind: str
    pts: float | None


class Channel:
    """A WebSocket that was accepted. Anyone on the loop may `say` something; only one task may `hear`."""

    def __init__(self, socket: WebSocket, send_s: float) -> None:
        self._socket, self._send_s = socket, send_s
        self._turn = asyncio.Lock()

    @classmethod
    async def accept(cls, socket: WebSocket, send_s: float) -> "Channel":
        """Answer the handshake, with the first of our subprotocols that was offered."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(next((name for name in SUBPROTOCOLS if name in offered), None))
        return cls(socket, send_s)

    async def say(self, message: dict[str, Any]) -> None:
        """Send a message. Raises `SlowReader` when the client leaves it unread for too long."""
        text = json.dumps(message, allow_nan=False)
        async with self._turn:
            try:
                await asyncio.wait_for(self._socket.send_text(text), self._send_s)
            except TimeoutError:
                raise SlowReader from None

    async def hear(self) -> AsyncGenerator[PushedFrame | dict[str, Any] | Refusal]:
        """Messages until the client goes: frames, JSON objects, and refusals of what is neither."""
        while True:
            try:
                message = await self._socket.receive()
            except RuntimeError:  # closed by our side meanwhile
                return
            if message["type"] == "websocket.disconnect":
                return
            data, text = message.get("bytes"), message.get("text")
            try:
                yield _frame(data) if data is not None else _object(text or "")
            except Refusal as refusal:
                yield refusal

    async def close(self, code: int = 1000) -> None:
        """Close, unless that has happened."""
        if self._socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(RuntimeError, TimeoutError, WebSocketDisconnect):
                await asyncio.wait_for(self._socket.close(code), self._send_s)


class Tasks:
    """Tasks of one connection: the first of the main ones to end ends them all."""

    def __init__(self) -> None:
        self._side: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task beside the main ones; if it fails, the connection ends."""
        task = asyncio.create_task(work)
        self._side.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._side.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    async def run(self, *main: Coroutine[Any, Any, None]) -> None:
        """Run until one of the main tasks ends or any task fails; then cancel the rest and wait for it."""
        tasks = [asyncio.create_task(work) for work in main]
        try:
            done, _ = await asyncio.wait([*tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            rest = [*tasks, *self._side]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            self._failed.cancel()


async def push_frame(service: Service, stream: Stream, frame: PushedFrame) -> "asyncio.Future[Any] | None":
    """Hand a frame to a session. What comes back is done when it was taken or dropped; None if it was left out.

    Raises `Refusal`.
    """
    if stream.source is not None or stream.owner is None:
        raise Refusal(409, "fed_by_source", "this session is fed by its source; nothing can be pushed")
    offered = await service.push(stream, frame.data, frame.kind, frame.pts, None)
    return None if offered.arrived is None else asyncio.wrap_future(offered.arrived.taken)


@contextlib.asynccontextmanager
async def conversing(channel: Channel) -> AsyncGenerator[None]:
    """Around a connection: whatever ends it, it is closed with a code that says why."""
    code = BYE
    try:
        yield
    except (WebSocketDisconnect, SlowReader):
        code = 1008
    except Exception as error:
        told(error)
        code = 1011
    finally:
        await channel.close(code)


def _frame(data: bytes) -> PushedFrame:
    if len(data) <= HEADER.size:
        raise Refusal(422, "invalid_frame", f"a frame is {HEADER.size} bytes and a picture; given: {len(data)} bytes")
    micros, flags, nothing = HEADER.unpack_from(data)
    if flags or nothing or micros < -1 or micros > 1e14:
        raise Refusal(422, "invalid_frame", "flags are 0, and times microseconds since the stream began, or -1")
    picture = data[HEADER.size :]
    kind = MAGIC.get(picture[:2])
    if kind is None:
        raise Refusal(415, "unsupported_picture", "a frame is a JPEG, PNG or WebP picture")
    return PushedFrame(picture, kind, None if micros == -1 else micros / 1e6)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise Refusal(422, "invalid_message", "a message is a JSON object with a type")
    return found
