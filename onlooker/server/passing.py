"""What a router passes on: a worker's reply as it comes, and a WebSocket both ways."""

import asyncio
import contextlib

import httpx2
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from onlooker.server.refusals import Refusal
from onlooker.server.wire import sse, until_gone

HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host", "content-length", "origin"}
HOP |= {"x-forwarded-for", "x-forwarded-proto", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"}
"""Headers of one connection, and those that were checked here."""


class Passed(Response):
    """A worker's reply, passed on as it comes. If the worker ends in the middle, a stream of events says so, and the
    connection is broken off: what was cut must not look whole."""

    def __init__(self, reply: httpx2.Response) -> None:
        super().__init__(None, reply.status_code)
        self._reply = reply
        headers = [(name, value) for name, value in reply.headers.items() if name not in HOP]
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        passing = asyncio.create_task(self._pass(send))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait([passing, gone], return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            for task in (passing, gone):
                task.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)
            await self._reply.aclose()

    async def _pass(self, send: Send) -> None:
        try:
            async for chunk in self._reply.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx2.TransportError:
            if self._reply.headers.get("content-type", "").startswith("text/event-stream"):
                lost = Refusal(503, "worker_lost", "the worker of this session ended in the middle", retry_after_s=2)
                told = sse(lost.body(), "error").encode()
                await send({"type": "http.response.body", "body": told, "more_body": True})
            return  # without a last chunk: the server under us breaks the connection off
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def both_ways(socket: WebSocket, worker: ClientConnection) -> None:
    """Pass on what either side of a WebSocket says, until one closes; the client hears how the worker ended."""

    async def up() -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await worker.send(message["bytes"] if message.get("bytes") is not None else message["text"])

    async def down() -> None:
        async for message in worker:
            await (socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message))

    tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(ConnectionClosed, WebSocketDisconnect):
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            # A worker that vanished said no code (1006): its client is told that something failed.
            await socket.close(1011 if worker.close_code in (None, 1006) else worker.close_code)
