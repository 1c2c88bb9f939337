"""Worker processes behind a router: started, watched, started anew when they end, each run under a new name."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from onlooker.server import placement
from onlooker.server.settings import Source

LOG = logging.getLogger("onlooker.server")
LONGEST_PAUSE_S = 30.0


@dataclass
class Place:
    """One place for a worker: a device, and the process that owns it now.

    The name of a run (`w0r1`, `w0r2`, ...) begins the ids of its sessions, so that an id tells whether its worker
    still runs.
    """

    number: int
    device: str
    sources: tuple[Source, ...] = ()
    run: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    state: dict[str, Any] = field(default_factory=dict)
    """What the worker last said of itself; empty while it is not ready."""
    measured: dict[str, Any] = field(default_factory=dict)
    """The same, of a worker that has ended too."""
    answers: bool = False
    """Whether it answers at all, which it does while it loads its model."""

    @property
    def name(self) -> str:
        """The name of the present run."""
        return f"w{self.number}r{self.run}"

    @property
    def url(self) -> str:
        """Where the present run listens."""
        return f"http://{self.host}:{self.port}"


class Workers:
    """The places of a router. `command` makes the arguments of a worker from its place; `watch` lets one that runs know
    that it has other sources now."""

    def __init__(
        self, places: list[Place], command: Callable[[Place], list[str]], watch: Callable[[Place], None] | None = None
    ) -> None:
        self.places, self._command, self._watch = places, command, watch
        self._ends = False
        self._client = httpx2.AsyncClient(timeout=5.0)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start all workers, and keep them running."""
        self._tasks = [asyncio.create_task(self._keep(place)) for place in self.places]
        self._tasks.append(asyncio.create_task(self._ask_all()))

    def ready(self) -> list[Place]:
        """The places whose worker takes work, whoever is next first."""
        return sorted((place for place in self.places if place.state), key=lambda place: placement.rank(place.state))

    def opened(self, place: Place) -> None:
        """A session was opened there: it counts until the worker says so itself."""
        need = placement.need_of(*(one.state for one in self.places))
        place.state = placement.with_one_more(place.state, need)

    def of_session(self, session_id: str) -> tuple[Place | None, bool]:
        """The place of a session, and whether its worker has ended since; (None, False) for an id of no worker here."""
        name = session_id.partition(".")[0]
        for place in self.places:
            if name == place.name or session_id in [source.name for source in place.sources]:
                return place, False
            if name.startswith(f"w{place.number}r") and name[len(f"w{place.number}r") :].isdecimal():
                return place, True
        return None, False

    async def end(self, within_s: float) -> None:
        """Let every worker drain and end."""
        self._ends = True
        await self.end_all(within_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def end_all(self, within_s: float) -> None:
        """Tell all workers to end, and wait, though not for ever."""
        running = [place.process for place in self.places if place.process and place.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.gather(*(process.wait() for process in running)), within_s)
        except TimeoutError:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def _keep(self, place: Place) -> None:
        pause_s = 1.0
        while not self._ends:
            place.run, place.state, place.answers = place.run + 1, {}, False
            began = time.monotonic()
            LOG.info("worker %s is started on %s", place.name, place.device)
            why = await self.run_one(place)
            place.state, place.answers = {}, False
            if self._ends:
                return
            LOG.error("worker %s ended (%s) and is started anew; its sessions are lost", place.name, why)
            await self.move_sources(place)
            # One that ends at once, again and again, is not started in a rush.
            pause_s = 1.0 if time.monotonic() - began > 60 else min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def move_sources(self, place: Place) -> None:
        """Have what a worker that ended had watched be watched by those that run and have the bytes for it. What none
        has the bytes for waits until the worker is back."""
        others, sources = [one for one in self.ready() if one is not place], place.sources
        given = placement.deal(len(sources), placement.need_of(place.measured), [one.state for one in others])
        pairs = list(zip(sources, given, strict=True))
        place.sources = tuple(source for source, number in pairs if number is None)
        for number, other in enumerate(others):
            if moved := tuple(source for source, to in pairs if to == number):
                other.sources = (*other.sources, *moved)
                LOG.info("worker %s watches %s now", other.name, ", ".join(source.name for source in moved))
                await self.watch(other)

    async def watch(self, place: Place) -> None:
        """Let a worker that runs know which sources are its own now."""
        if self._watch is not None:
            await asyncio.to_thread(self._watch, place)

    async def run_one(self, place: Place) -> str:
        """Start the worker of a place and wait for its end; why it ended."""
        place.port = _free_port()
        command = [sys.executable, "-m", "onlooker", *self._command(place)]
        # A worker's file says everything: what the environment says of settings is in it already.
        settings = ("ONLOOKER_MODEL", "ONLOOKER_SERVER", "ONLOOKER_LIMITS", "ONLOOKER_SLO", "ONLOOKER_WEBHOOK")
        settings += ("ONLOOKER_SOURCES", "ONLOOKER_KEYS", "ONLOOKER_RETENTION")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        place.process = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            return f"exit code {await place.process.wait()}"
        finally:
            if place.process.returncode is None:
                place.process.kill()

    async def _ask_all(self) -> None:
        while True:
            await asyncio.gather(*(self._ask(place) for place in self.places))
            await asyncio.sleep(0.5)

    async def _ask(self, place: Place) -> None:
        name = place.name
        if not place.port:
            return
        answers, state = True, {}
        try:
            reply = await self._client.get(f"{place.url}/readyz")
            state = reply.json() if reply.status_code == 200 else {}
        except (httpx2.TransportError, ValueError):
            answers = False
        if name == place.name:  # it may have ended while it was asked
            place.state, place.answers = state, answers
            place.measured = state or place.measured


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
