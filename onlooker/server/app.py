"""The application: routes put together around one service, nothing global."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException

from onlooker import __version__
from onlooker.core.errors import OnlookerError
from onlooker.engine import Engine
from onlooker.server.admin import admin_routes
from onlooker.server.admission import figures
from onlooker.server.chat import chat_routes
from onlooker.server.chat_body import UNSUPPORTED
from onlooker.server.config_file import ConfigFile
from onlooker.server.gate import Gate, SafeHeaders, response_of
from onlooker.server.page import page_routes
from onlooker.server.realtime import realtime_routes
from onlooker.server.reference import reference_routes
from onlooker.server.refusals import Refusal, of_error
from onlooker.server.responses import responses_routes
from onlooker.server.searching import history_routes
from onlooker.server.service import Service
from onlooker.server.sessions import session_routes
from onlooker.server.settings import ServerSettings
from onlooker.server.tracing import of_requests
from onlooker.server.websocket import socket_routes


def create_app(
    settings: ServerSettings,
    make_engine: Callable[[], Engine],
    config: ConfigFile | None = None,
    provider: TracerProvider | None = None,
) -> FastAPI:
    """An application whose worker loads the engine when the application starts. `app.state.service` is its service;
    `config` is the file behind the settings, if there is one; `provider` records spans (None: as the environment
    says)."""
    service = Service(settings, make_engine, config, provider)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        tasks = [asyncio.create_task(service.sweep()), asyncio.create_task(service.watched.keep())]
        tasks.append(asyncio.create_task(service.outgoing.keep(service)))
        if service.finder is not None:
            tasks.append(asyncio.create_task(service.finder.keep()))
        if service.memories is not None:
            tasks.append(asyncio.create_task(service.memories.keep()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await service.end()

    app = FastAPI(
        title="Onlooker",
        version=__version__,
        description="Live video in, answers out.",
        lifespan=life,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        telemetry=of_requests(provider),
    )
    app.state.service = service
    app.include_router(session_routes(service))
    app.include_router(chat_routes(service))
    app.include_router(responses_routes(service))
    app.include_router(admin_routes(service))
    app.include_router(history_routes(service))
    app.include_router(socket_routes(service))
    app.include_router(realtime_routes(service))
    if settings.whip:
        from onlooker.server.whip import whip_routes

        app.include_router(whip_routes(service))
    app.include_router(page_routes())
    _health_routes(app, service)
    _error_handlers(app)
    app.include_router(reference_routes(app))
    app.add_middleware(Gate, service=service)  # pyright: ignore[reportArgumentType] - takes a service besides
    app.add_middleware(SafeHeaders)
    return app


def _health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Response:
        """Tell whether the process is alive and its device not stuck."""
        if service.worker.is_stalled:
            return JSONResponse({"status": "stalled"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["health"])
    async def readyz() -> Response:
        """Tell whether new work may be sent here."""
        if service.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if not service.worker.is_ready:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ready", "model": service.settings.model} | figures(service))

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _error_handlers(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Any) -> Response:
        return response_of(error)

    @app.exception_handler(OnlookerError)
    async def our_error(request: Request, error: Any) -> Response:
        return response_of(of_error(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Any) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        response = response_of(Refusal(error.status_code, code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        kind, inside = first.get("type"), first.get("ctx", {}).get("place")
        place = ".".join(str(part) for part in (*first.get("loc", ())[1:], *([inside] if inside else []))) or None
        code = kind if kind in UNSUPPORTED else "unknown_field" if kind == "extra_forbidden" else "invalid_request"
        where = f" ({place[:200]})" if place else ""
        return response_of(Refusal(422, code, f"{first.get('msg', 'invalid')}{where}", param=place and place[:200]))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Any) -> Response:
        return response_of(of_error(error))
