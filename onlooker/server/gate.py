"""The gate every request passes: who calls, how much they may send and how slowly, one log line, one count."""

import asyncio
import logging
import re
import time
from collections import Counter
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from onlooker.server.refusals import Refusal, overloaded
from onlooker.server.service import Service
from onlooker.server.wire import SlowReader

LOG = logging.getLogger("onlooker.server.access")
OPEN_PATHS = ("/", "/healthz", "/readyz", "/favicon.ico")
"""What needs no key: the page holds no secret, and health checks have none."""
RAW_BODIES = re.compile(r"/whip/[^/]+|.*/frame")
"""Paths whose bodies are not JSON."""


class SafeHeaders:
    """ASGI middleware: every response says that pages of other sites may not embed it, nor browsers guess its type."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["X-Content-Type-Options"] = "nosniff"
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_safely)


class Gate:
    """ASGI middleware. It answers what may not pass itself, so no route has to think of it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._receiving_bytes = 0
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        address = (scope.get("client") or ("",))[0]
        self._under_way[address] += 1

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._pass(scope, receive, send_noted)
        except SlowReader:
            LOG.warning("a client did not read what it was sent and was cut off", extra={"path": scope["path"]})
        finally:
            self._under_way[address] -= 1
            if not self._under_way[address]:
                del self._under_way[address]
            if scope["type"] == "http":
                self._service.metrics.responded(status)
            seconds = round(time.monotonic() - began, 4)
            # The path only: a query may hold what is nobody's business.
            facts = {"path": scope["path"], "method": scope.get("method", "WS"), "status": status, "seconds": seconds}
            caller = scope.get("state", {}).get("caller")
            LOG.info("request", extra=facts | ({"key": caller.name} if caller else {}))

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._under_way[(scope.get("client") or ("",))[0]] > self._service.limits.requests_per_address:
                self._service.metrics.refused("requests_per_address")
                raise overloaded("too_many_connections", "too many requests of your address are under way", 5)
            self._admit(scope)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        held = 0
        limits = self._service.limits
        is_frame = scope["path"].endswith("/frame")
        most = limits.frame_bytes if is_frame else limits.body_bytes
        until = time.monotonic() + limits.receive_s
        whole = False

        async def receive_bounded() -> Message:
            nonlocal held, whole
            if whole:  # what comes now is the end of the connection, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                raise Refusal(408, "too_slow", f"a body must arrive within {limits.receive_s:g} s") from None
            size = len(message.get("body", b""))
            if held + size > most:
                raise Refusal(413, "body_too_large", f"this body may have at most {most} bytes")
            if self._receiving_bytes + size > limits.receiving_bytes:
                self._service.metrics.refused("receiving")
                raise overloaded("server_busy", "too many bytes are being received at once", 2)
            held += size
            self._receiving_bytes += size
            whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            self._receiving_bytes -= held

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_PATHS:
            caller = scope.setdefault("state", {})["caller"] = self._service.keys.caller(headers)
            if caller.role == "reader" and (scope["type"] != "http" or scope["method"] not in ("GET", "HEAD")):
                raise Refusal(403, "read_only", "this key may look and listen, and do nothing else")
            if scope["path"].startswith("/v1/admin/") and caller.role != "admin":
                raise Refusal(403, "admins_only", "this needs the key of an admin")
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        limits = self._service.limits
        most = limits.frame_bytes if scope["path"].endswith("/frame") else limits.body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise Refusal(413, "body_too_large", f"this body may have at most {most} bytes; given: {declared[:20]}")
        has_body = declared != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if has_body and not RAW_BODIES.fullmatch(scope["path"]) and kind != "application/json":
            raise Refusal(415, "unsupported_body", f"send application/json; given: {kind[:60] or 'no content type'}")


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await refuse_socket(refusal, WebSocket(scope, receive, send))
    else:
        await response_of(refusal)(scope, receive, send)


async def refuse_socket(refusal: Refusal, socket: WebSocket) -> None:
    """Refuse the handshake of a WebSocket, with the status and the reason of any other refusal."""
    await socket.send_denial_response(response_of(refusal))


def response_of(refusal: Refusal) -> JSONResponse:
    """A refusal as a response."""
    headers: dict[str, Any] = refusal.headers_told()
    return JSONResponse(refusal.body(), refusal.status, headers)
