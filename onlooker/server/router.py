"""A thin router before several workers: it looks for the session a request is about, and passes everything on."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from onlooker.server.admin import SourcePut, changed, describe
from onlooker.server.dealing import Dealing
from onlooker.server.gate import SafeHeaders, refuse_socket, response_of
from onlooker.server.keys import Keys, check_origin
from onlooker.server.page import page_routes
from onlooker.server.passing import HOP, Passed, both_ways
from onlooker.server.refusals import Refusal, gone, unknown_session
from onlooker.server.settings import ServerSettings
from onlooker.server.wire import model_list
from onlooker.server.workers import Place, Workers

SESSIONS = "/v1/streaming/sessions"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
READ = (CHAT, RESPONSES, SESSIONS)  # their bodies name the session that they are about, or none
SESSION_HEADERS = ("x-session-id", "x-streaming-session")


class Router:
    """Passes requests on to the worker of their session, and new ones to the least loaded. `drain` ends it."""

    def __init__(self, settings: ServerSettings, workers: Workers, dealing: Dealing | None = None) -> None:
        self.settings, self.workers, self._dealing = settings, workers, dealing
        self._keys = Keys(settings.all_keys)
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=5.0), limits=httpx2.Limits(max_connections=None)
        )

    async def drain(self) -> None:
        """Let the workers finish their answers and end; requests are passed on meanwhile."""
        await self.workers.end(self.settings.limits.drain_s + 10)

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; each worker is told. Raises `Refusal`: 409 without a file, 422 if wrong."""
        if self._dealing is None:
            raise Refusal(409, "no_config", "these workers have no configuration file")
        told = await self._dealing.reload()
        self.settings, self._keys = self._dealing.settings, Keys(self._dealing.settings.all_keys)
        return told

    async def admin(self, request: Request, path: str) -> Response:
        """What an admin may do, over all workers: changes go through the configuration file."""
        if self._keys.caller(request.headers).role != "admin":
            raise Refusal(403, "admins_only", "this needs the key of an admin")
        dealing, (kind, _, name) = self._dealing, path.partition("/")
        call = (request.method, kind)
        if call == ("POST", "reload"):
            return JSONResponse(await self.reload())
        if call == ("POST", "preview"):
            return Passed(await self._send(self.least_loaded()[0], request, request.stream()))
        if call == ("GET", "sources"):
            return JSONResponse({"sources": [describe(source) for source in self.settings.sources]})
        if call not in (("PUT", "sources"), ("DELETE", "sources")) or not name:
            raise Refusal(404, "not_found", "there is no such call")
        if dealing is None or dealing.file is None:
            raise Refusal(409, "no_config", "with several workers sources change in the configuration file (--config)")
        before, source, address = dealing.source(name), None, None
        if request.method == "PUT":
            try:
                body = SourcePut.model_validate_json(await self._whole(request))
            except ValidationError as error:
                raise Refusal(422, "invalid_request", error.errors()[0]["msg"][:200]) from None
            source = changed(name, before, body, self.settings.response)
            address = None if body.url is None else {"url": body.url}
        elif before is None:
            raise Refusal(404, "source_not_found", f"there is no source {name[:80]!r}", param="name")
        await asyncio.to_thread(dealing.file.write_source, name, source, address)
        return JSONResponse(await self.reload() | {"name": name, "written": True})

    async def close(self) -> None:
        """Let go of the connections to the workers."""
        await self._client.aclose()

    # --------------------------------------------------------------------------------------------------- who serves

    def place_of(self, session_id: str) -> Place:
        """Where a session lives. Raises `Refusal`: 404, or 410 when its worker has ended."""
        place, has_ended = self.workers.of_session(session_id)
        if place is None:
            raise unknown_session(session_id)
        if has_ended:
            raise gone(session_id, "its worker ended")
        return place

    def least_loaded(self) -> list[Place]:
        """Places for new work, best first. Raises `Refusal` (503) when there are none."""
        places = self.workers.ready()
        if not places:
            raise Refusal(503, "no_worker", "no worker is ready", retry_after_s=5)
        return places

    def named(self, connection: HTTPConnection, body: bytes = b"") -> str | None:
        """The session a request names, if it names one."""
        path = connection.url.path
        if path.startswith(f"{SESSIONS}/"):
            return path[len(SESSIONS) + 1 :].partition("/")[0]
        if path.startswith("/whip/"):
            return path[len("/whip/") :].partition("/")[0]
        if path.startswith("/v1/models/"):
            return path.partition("@")[2] or None
        names = [connection.headers.get(name) for name in SESSION_HEADERS]
        names += [connection.query_params.get("session_id"), connection.query_params.get("model", "").partition("@")[2]]
        if path.startswith(f"{RESPONSES}/"):
            return path[len(RESPONSES) + 1 :].partition("/")[0].removeprefix("resp_")
        if path in (CHAT, RESPONSES):
            with contextlib.suppress(ValueError, RecursionError):
                asked = json.loads(body)
                if isinstance(asked, dict):
                    before = str(asked.get("previous_response_id") or "").removeprefix("resp_")
                    names += [asked.get("session_id"), str(asked.get("model", "")).partition("@")[2], before]
        return next((name for name in names if isinstance(name, str) and name), None)

    # -------------------------------------------------------------------------------------------------- passing on

    async def http(self, request: Request) -> Response:
        """Pass a request on."""
        check_origin(request.headers, any_host=self._keys.needed)
        path = request.url.path
        body = await self._whole(request) if path in READ else b""
        session_id = self.named(request, body)
        content = body if path in READ else request.stream()
        if session_id is not None:
            place = self.place_of(session_id)
            reply = await self._send(place, request, content)
            if request.method in ("PUT", "DELETE") and "/rules/" in path and reply.status_code == 200:
                await self._note_rules(place, session_id, request)
            return Passed(reply)
        places = self.least_loaded()
        if path in READ and request.method == "POST":
            for place in places[:-1]:
                reply = await self._send(place, request, content)
                if reply.status_code != 429:  # a full worker: the next one may have room
                    self.workers.opened(place)
                    return Passed(reply)
                await reply.aclose()
        return Passed(await self._send(places[-1], request, content))

    async def _note_rules(self, place: Place, name: str, request: Request) -> None:
        """The rules of a source were changed on its stream: they count for the configuration file too."""
        if self._dealing is not None and self._dealing.source(name) is not None:
            headers = {key: value for key, value in request.headers.items() if key == "authorization"}
            listed = await self._client.get(f"{place.url}{SESSIONS}/{name}/rules", headers=headers)
            await self._dealing.note_rules(name, listed.json()["rules"])
            self.settings = self._dealing.settings

    async def _whole(self, request: Request) -> bytes:
        limits = self.settings.limits
        data = bytearray()
        try:
            async with asyncio.timeout(limits.receive_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limits.body_bytes:
                        raise Refusal(413, "body_too_large", f"this body may have at most {limits.body_bytes} bytes")
        except TimeoutError:
            raise Refusal(408, "too_slow", f"a body must arrive within {limits.receive_s:g} s") from None
        return bytes(data)

    async def _send(self, place: Place, request: Request, content: Any) -> httpx2.Response:
        target = place.url + request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP]
        headers.append(("x-forwarded-for", _client(request)))
        if request.method in ("GET", "DELETE", "HEAD"):
            content = None
        sent = self._client.build_request(request.method, target, headers=headers, content=content)
        try:
            return await self._client.send(sent, stream=True)
        except httpx2.TransportError:
            raise Refusal(503, "worker_lost", f"worker {place.name} does not answer", retry_after_s=2) from None

    async def websocket(self, socket: WebSocket) -> None:
        """Pass a WebSocket on, both ways, until either side closes."""
        try:
            check_origin(socket.headers, any_host=self._keys.needed)
            session_id = self.named(socket)
            place = self.least_loaded()[0] if session_id is None else self.place_of(session_id)
        except Refusal as refusal:
            await refuse_socket(refusal, socket)
            return
        target = f"ws://{place.host}:{place.port}{socket.url.path}?{socket.url.query}"
        shown = socket.headers.get("authorization")
        more = {"x-forwarded-for": _client(socket)} | ({"authorization": shown} if shown else {})
        try:
            async with connect(
                target,
                additional_headers=more,
                subprotocols=socket.scope.get("subprotocols") or None,
                max_size=self.settings.limits.frame_bytes + 1024,
                max_queue=4,
                compression=None,
                proxy=None,
            ) as worker:
                await socket.accept(worker.subprotocol)
                await both_ways(socket, worker)
        except InvalidStatus as refused:
            reply = refused.response
            headers = {"content-type": reply.headers.get("content-type", "application/json")}
            await socket.send_denial_response(Response(reply.body, reply.status_code, headers))
        except (InvalidHandshake, OSError, TimeoutError):
            lost = Refusal(503, "worker_lost", f"worker {place.name} does not answer", retry_after_s=2)
            await refuse_socket(lost, socket)

    # ------------------------------------------------------------------------------------------------ of all workers

    def models(self, request: Request, created: float) -> Response:
        """The model, and the model looking at each source."""
        self._keys.caller(request.headers)
        names = [source.name for source in self.settings.sources]
        return JSONResponse(model_list(self.settings.model, names, created))

    async def listed(self, request: Request, key: str) -> Response:
        """A list that all workers have a part of."""
        return JSONResponse({key: await self._gather(request, key)})

    async def _gather(self, request: Request, key: str) -> list[Any]:
        self._keys.caller(request.headers)
        headers = {name: value for name, value in request.headers.items() if name == "authorization"}
        found: list[Any] = []
        for place in self.workers.ready():
            with contextlib.suppress(httpx2.TransportError):
                reply = await self._client.get(place.url + request.url.path, headers=headers)
                found += reply.json().get(key, [])
        return found

    async def sources(self, request: Request) -> Response:
        """The sources of all workers, also those whose worker is not up."""
        told_of = {one["name"]: one for one in await self._gather(request, "sources")}
        absent = {"state": "starting"}
        names = [source.name for source in self.settings.sources]
        listed = [told_of.get(name) or {"name": name, "session_id": name} | absent for name in names]
        return JSONResponse({"sources": listed})

    async def metrics(self, request: Request) -> Response:
        """The metrics of all workers, each line with its worker's number."""
        self._keys.caller(request.headers)
        headers = {name: value for name, value in request.headers.items() if name == "authorization"}
        heads, lines = dict[str, str](), dict[str, list[str]]()
        for place in self.workers.ready():
            try:
                text = (await self._client.get(f"{place.url}/metrics", headers=headers)).text
            except httpx2.TransportError:
                continue
            for family in text_string_to_metric_families(text):
                name = family.name + ("_total" if family.type == "counter" else "")
                heads[family.name] = f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n"
                for sample in family.samples:
                    labels = {"worker": str(place.number)} | sample.labels
                    told = ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
                    lines.setdefault(family.name, []).append(f"{sample.name}{{{told}}} {sample.value}")
        text = "".join(heads[name] + "\n".join(found) + "\n" for name, found in lines.items())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def create_router(settings: ServerSettings, workers: Workers, dealing: Dealing | None = None) -> FastAPI:
    """The router's application, which starts the workers. `app.state.service` is the router; `dealing` says what each
    worker is told, where they have a configuration."""
    router = Router(settings, workers, dealing)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        workers.start()
        try:
            yield
        finally:
            await workers.end(5.0)
            await router.close()

    app, began = FastAPI(title="Onlooker router", lifespan=life, openapi_url=None), time.time()
    app.state.service = router

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Any) -> Response:
        return response_of(error)

    @app.get("/healthz")
    async def healthz() -> Response:
        # Workers that load their model answer too: none means that all have ended, or that none has begun.
        alive = [place.name for place in workers.places if place.answers]
        return JSONResponse({"status": "ok" if alive else "no_worker", "workers": alive}, 200 if alive else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = [place.name for place in workers.ready()]
        return JSONResponse({"status": "ready" if ready else "loading", "workers": ready}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return await router.metrics(request)

    @app.get(SESSIONS)
    async def sessions(request: Request) -> Response:
        return await router.listed(request, "sessions")

    @app.get("/v1/streaming/sources")
    async def sources(request: Request) -> Response:
        return await router.sources(request)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return router.models(request, began)

    @app.api_route("/v1/admin/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def admin(request: Request, path: str) -> Response:
        return await router.admin(request, path)

    app.include_router(page_routes())
    app.add_api_route("/{path:path}", router.http, methods=["GET", "POST", "PUT", "DELETE"])
    app.add_api_websocket_route("/{path:path}", router.websocket)
    app.add_middleware(SafeHeaders)
    return app


def _client(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client is not None else "unknown"
