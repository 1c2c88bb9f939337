"""Run the application until it is told to end, and then let the answers in flight finish."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from onlooker.engine import Engine
from onlooker.server.app import create_app
from onlooker.server.config import Config
from onlooker.server.config_file import ConfigFile
from onlooker.server.connections import connections_within
from onlooker.server.dealing import Dealing
from onlooker.server.refusals import Refusal
from onlooker.server.router import create_router
from onlooker.server.settings import ServerSettings
from onlooker.server.workers import Workers


class Drains(Protocol):
    """What is served: it can be told to finish, and to read its configuration again."""

    async def drain(self) -> None:
        """Refuse new work and finish the old."""
        ...

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again and apply what changed. Raises `Refusal`."""
        ...


LOG = logging.getLogger("onlooker.server")


class Server(uvicorn.Server):
    """A web server that drains: a first signal to end lets answers in flight finish, a second ends at once."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                settings.host,
                settings.port,
                http=connections_within(limits),
                log_config=None,
                access_log=False,
                proxy_headers=bool(settings.proxies),
                forwarded_allow_ips=list(settings.proxies),
                server_header=False,
                ws="websockets-sansio",
                ws_max_size=limits.frame_bytes + 1024,
                ws_max_queue=4,
                ws_per_message_deflate=False,
                ws_ping_interval=limits.silence_s,
                ws_ping_timeout=limits.silence_s,
                limit_concurrency=limits.connections,
                timeout_graceful_shutdown=5,
                # Longer than clients keep an idle connection: else both ends part in the middle of a request.
                timeout_keep_alive=75,
            )
        )
        self._limits = limits
        self._service: Drains = app.state.service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Future[Any]] = []

    async def serve(self, sockets=None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                # Through a descriptor of our own: not every event loop lets options be set on its sockets.
                with socket.socket(fileno=os.dup(listener.fileno())) as twin:
                    end_when_silent(twin, self._limits.silence_s, self._limits.send_s)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Unlike the base class, this does not raise the signal again at the end: a drained server has ended well.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP"):
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self.handle_reload)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.end)

    def soon(self, work: Callable[[Any], Awaitable[Any]]) -> None:
        """Have something done with the service, on its event loop. Called on any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: self._hold(asyncio.ensure_future(work(self._service))))

    def _hold(self, task: "asyncio.Future[Any]") -> None:
        self._tasks = [*(one for one in self._tasks if not one.done()), task]

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Have the configuration read again."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: self._hold(asyncio.create_task(self._reload())))

    async def _reload(self) -> None:
        try:
            LOG.info("the configuration was read again", extra=await self._service.reload())
        except Refusal as refusal:
            LOG.error("nothing was changed: %s", refusal.message)

    def end(self) -> None:
        """Begin to drain; if it drains already, end at once. Called on the event loop."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        LOG.info("draining: new work is refused, answers in flight finish")
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._service.drain()
        finally:
            self.should_exit = True


def end_when_silent(listener: socket.socket, silence_s: float, unread_s: float) -> None:
    """Let the connections that a listener will accept end when the other machine no longer answers, as after a power
    cut: within about twice `silence_s` on a quiet connection, within `unread_s` where something sent is not taken.

    Linux has all of it; elsewhere what there is.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe_s = max(1, round(silence_s / 4))
    wanted = {"KEEPIDLE": max(1, round(silence_s)), "KEEPINTVL": probe_s, "KEEPCNT": 4}
    wanted |= {"USER_TIMEOUT": round(1000 * max(unread_s, 2 * silence_s))}
    for name, value in wanted.items():
        if (option := getattr(socket, f"TCP_{name}", None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def serve(
    settings: ServerSettings,
    make_engine: Callable[[], Engine],
    on_ready: Callable[[], None] = lambda: None,
    config: ConfigFile | None = None,
) -> None:
    """Serve until told to end; `on_ready` is called when the model is loaded. `config` is read again on SIGHUP.

    Raises what loading the model raised, if it could not be loaded.
    """
    app = create_app(settings, make_engine, config)
    server = Server(app, settings)
    started: Future[None] = app.state.service.worker.started
    started.add_done_callback(lambda loaded: _loaded(loaded, server, on_ready))
    server.run()
    if started.done() and (error := started.exception()):
        raise error


def route(settings: ServerSettings, config: Config, file: ConfigFile | None) -> None:
    """Serve through one worker process per device until told to end; sources are dealt out among them."""
    with tempfile.TemporaryDirectory(prefix="onlooker-") as folder:  # its owner's alone
        dealing = Dealing(Path(folder), config, settings, file)
        workers = Workers(dealing.places, dealing.command, dealing.watch)
        Server(create_router(settings, workers, dealing), settings).run()


def _loaded(loaded: Future[None], server: Server, on_ready: Callable[[], None]) -> None:
    if loaded.exception() is not None:
        server.should_exit = True
    else:
        on_ready()
