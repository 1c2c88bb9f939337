"""What all routes share: the worker, the sessions and their owners, and who is let in."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opentelemetry.trace import TracerProvider
from starlette.requests import Request

from onlooker.core.errors import OnlookerError
from onlooker.core.events import Alert, Answer
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.server.addresses import Allowed
from onlooker.server.admission import admit, keep_within_memory
from onlooker.server.bodies import Sampling
from onlooker.server.config_file import ConfigFile
from onlooker.server.feed import Missed
from onlooker.server.history import History
from onlooker.server.keys import Caller, Keys
from onlooker.server.memories import Memories
from onlooker.server.metrics import Metrics
from onlooker.server.moments import Finder
from onlooker.server.outgoing import Outgoing
from onlooker.server.pictures import read_picture
from onlooker.server.quality import picture_alert
from onlooker.server.question import Question, cancel_when_gone, check_words, decoding_of
from onlooker.server.reconfigure import reconfigure
from onlooker.server.refusals import Refusal, draining, gone, of_error, overloaded, unknown_session
from onlooker.server.settings import ServerSettings
from onlooker.server.sources import client_source
from onlooker.server.stream import Event, Offered, Stream, StreamSettings
from onlooker.server.tracing import Observers, Tracing
from onlooker.server.watched import Watched
from onlooker.server.wire import alert_facts
from onlooker.server.worker import Worker

LOG = logging.getLogger("onlooker.server")
REMEMBERED = 4096
"""Ended sessions of which it is still known why they ended."""


class Service:
    """One worker and everything around it. Its methods are called on the event loop, unless they say otherwise."""

    def __init__(
        self,
        settings: ServerSettings,
        make_engine: Callable[[], Engine],
        config: ConfigFile | None = None,
        provider: TracerProvider | None = None,
    ) -> None:
        self.settings, self.limits, self.config = settings, settings.limits, config
        self.metrics = Metrics(settings.model)
        self.outgoing = Outgoing(settings)
        self.tracing = Tracing(provider)
        told = Observers(self.metrics, self.tracing)
        self.worker = Worker(make_engine, told, settings.slo, self._send_alert, settings.schedule)
        self.metrics.watch(self)
        self.keys = Keys(settings.all_keys)
        self.allowed = Allowed(settings.allowed_hosts)
        self.streams: dict[str, Stream] = {}
        self.watched = Watched(self, settings.sources)
        self.history = self.memories = self.finder = None
        if (settings.state or settings.database) is not None:
            self.history = History.of(settings, self.watched.clip)
            self.finder = Finder(self, self.history.database, settings.search)
        if settings.state is not None:
            self.memories = Memories(self, settings.state)
        self.is_draining = False
        self.pool = ThreadPoolExecutor(4, "onlooker-pictures")
        self._gone: OrderedDict[str, tuple[str | None, str]] = OrderedDict()

    # ---------------------------------------------------------------------------------------------------- sessions

    def may_work(self) -> None:
        """Raise `Refusal` (503) when no new work is taken."""
        if self.is_draining:
            raise draining()
        if not self.worker.is_ready:
            raise Refusal(503, "loading", "the model is being loaded", retry_after_s=2)

    async def open(
        self,
        owner: Caller | None,
        settings: StreamSettings,
        make: Callable[[Engine], Any] | None = None,
        stream_id: str | None = None,
    ) -> Stream:
        """A new session of a caller (None: shared by all). Raises `Refusal` (429) when there is no room for it."""
        self.may_work()
        name = None if owner is None else owner.name
        if owner is not None:
            admit(self, owner)
        stream_id = stream_id or f"{self.settings.worker}.{secrets.token_urlsafe(12)}"
        stream = Stream(stream_id, name, settings, self.limits, self._note)
        self.streams[stream_id] = stream  # at once: the next caller must find it counted
        try:
            make = make or (lambda engine: engine.open(trace=settings.trace))
            # What the operator named is watched in any case.
            await asyncio.wrap_future(self.worker.open(stream, make, admit=owner is not None))
        except BaseException:
            self.streams.pop(stream_id, None)
            self.worker.close(stream, "it could not be opened")
            raise
        return stream

    async def follow(self, owner: Caller, settings: StreamSettings, url: str) -> Stream:
        """A new session that the server feeds from an address. Raises `Refusal`."""
        self.may_work()
        fps = settings.fps or self.settings.source_fps
        make_feeder = await client_source(url, fps, self.allowed, self.limits)
        stream = await self.open(owner, settings)
        make_feeder(stream).start()
        return stream

    async def note_rules(self, stream: Stream) -> None:
        """The rules of a stream were changed: those of a source count from now on, also after a restart."""
        if self.history is not None:
            self.history.rules(stream)
        if stream.owner is None and stream.id in self.watched:
            self.watched.note_rules(stream.id, () if stream.watch is None else stream.watch.rules)
            await self.write_back(stream.id)

    async def write_back(self, name: str, address: dict[str, str] | None = None) -> bool:
        """Write what is watched under a name into the configuration file; whether there is one."""
        if self.config is None:
            return False
        source = next((one for one in self.watched.sources if one.name == name), None)
        await asyncio.to_thread(self.config.write_source, name, source, address)
        return True

    async def reload(self) -> dict[str, Any]:
        """Read the configuration file again and apply what changed; streams that did not change go on.

        Raises `Refusal`: 409 without a file, 422 (with every fault) when it is wrong; then nothing is changed.
        """
        return await reconfigure(self)

    def snapshot_folder(self) -> Path:
        """Where snapshots are kept. Raises `Refusal` (403) on a server that keeps none."""
        if self.settings.snapshots is None:
            raise Refusal(403, "snapshots_off", "this server keeps no snapshots; start it with --snapshots DIR")
        return self.settings.snapshots

    def memory_bytes(self) -> int:
        """Bytes all sessions hold, as of the last second."""
        return sum(stream.memory_bytes for stream in list(self.streams.values()))

    def find(self, caller: Caller, stream_id: str, *, own: bool = False, rules: bool = False) -> Stream:
        """A session this caller may use; with `own`, one that is not shared, unless an admin changes its `rules`.

        Raises `Refusal`: 404 for one that is not there or not theirs, 410 for one that ended, 403 for a shared one, 503
        for a source of the server that is not up yet, or not again.
        """
        stream = self.streams.get(stream_id)
        if stream is None:
            self._refuse_starting(stream_id)
            owner, why = self._gone.get(stream_id, ("", ""))
            if owner in (None, caller.name):
                raise gone(stream_id, why)
            raise unknown_session(stream_id)
        if stream.owner not in (None, caller.name):
            raise unknown_session(stream_id)
        if own and stream.owner is None and not (rules and caller.role == "admin"):
            raise Refusal(403, "shared_session", f"session {stream_id} is a source of the server; it can only be asked")
        if stream.state != "live":
            self._refuse_starting(stream_id)
            raise gone(stream_id, stream.why_ended or stream.state)
        stream.touch()
        return stream

    def _refuse_starting(self, stream_id: str) -> None:
        if stream_id in self.watched:
            why = f"source {stream_id} is being opened"
            raise Refusal(503, "source_starting", why, param="session_id", retry_after_s=2)

    def visible(self, caller: Caller) -> list[Stream]:
        """The sessions this caller may use, oldest first."""
        return [stream for stream in self.streams.values() if stream.owner in (None, caller.name)]

    async def close(self, stream: Stream, why: str) -> None:
        """End a session and wait until what it held is free."""
        self._forget(stream, why)
        with contextlib.suppress(Refusal):  # a worker that has stopped holds nothing
            await asyncio.wrap_future(self.worker.close(stream, why))

    def _forget(self, stream: Stream, why: str) -> None:
        if self.streams.pop(stream.id, None) is not None:
            self.metrics.forget(stream)
            self._gone[stream.id] = (stream.owner, why)
            while len(self._gone) > REMEMBERED:
                self._gone.popitem(last=False)

    async def sweep(self) -> None:
        """Once a second, for ever: close what nobody uses, forget what failed."""
        while True:
            await asyncio.sleep(1.0)
            await keep_within_memory(self)
            for stream in list(self.streams.values()):
                if stream.state != "live":
                    self._forget(stream, stream.why_ended or stream.state)
                elif (
                    stream.owner is not None
                    and not (stream.events.num_readers or stream.questions)
                    and time.monotonic() - stream.used_s > self.limits.idle_s
                ):
                    LOG.info("session %s was idle and is closed", stream.id)
                    await self.close(stream, f"nobody used it for {self.limits.idle_s:g} s")

    # ------------------------------------------------------------------------------------------------------ frames

    async def push(self, stream: Stream, data: bytes, kind: str, pts: float | None, wall: float | None) -> Offered:
        """Decode a picture off the loop and hand it in. Raises `Refusal`."""
        self.may_work()
        received_s = time.monotonic()
        loop = asyncio.get_running_loop()
        async with stream.decoding:
            try:
                picture = await loop.run_in_executor(self.pool, read_picture, data, kind, self.limits)
            except Refusal:
                stream.counts.refused += 1
                raise
            if pts is None:
                # The clock begins with the first frame; arrivals in one moment are told apart by a microsecond.
                first = stream.last_time_s is None
                pts = 0.0 if first else max(received_s - stream.began_s, (stream.last_time_s or 0.0) + 1e-6)
                if first:
                    stream.began_s = received_s
            self.metrics.received()
            return stream.submit(Frame(picture.image, pts, wall), picture.thumbnail, received_s)

    # --------------------------------------------------------------------------------------------------- questions

    def ask(
        self,
        stream: Stream,
        text: str,
        sampling: Sampling,
        at: float | None = None,
        since: float | None = None,
        *,
        caller: Caller | None = None,
        standing: str | None = None,
    ) -> Question:
        """Put a question; read its answer with `answer` or `pieces`. Raises `Refusal`.

        `caller` is whose questions are counted; None for the server's own (`standing` names it).
        """
        self.may_work()
        limits = self.limits
        check_words(text, limits.question_chars)
        if at is None and self._on_bad_pictures(stream) == "refuse" and (why := stream.describe()["warnings"]):
            self.metrics.refused("bad_picture")
            raise Refusal(409, "bad_picture", f"no answer about now: {'; '.join(why)}", retry_after_s=5)
        if stream.questions >= limits.questions_per_session:
            self.metrics.refused("questions_per_session")
            raise overloaded("too_many_questions", f"{stream.questions} questions to this session are in flight", 1)
        if sum(one.questions for one in self.streams.values()) >= limits.questions:
            self.metrics.refused("questions")
            raise overloaded("server_busy", f"{limits.questions} questions are in flight", 2)
        if caller is not None:
            self.keys.check_pace(caller)
        decoding = decoding_of(sampling, limits.new_tokens)
        question = Question(stream, text, decoding, at, since, sampling.stop, standing)
        self.tracing.asked(question)
        stream.questions += 1
        stream.touch()
        self.worker.ask(question)
        return question

    async def pieces(self, question: Question) -> AsyncGenerator[str | Answer]:
        """The pieces of an answer as they come, then the whole. Leaving the loop early cancels the question.

        Raises `Refusal` when it fails.
        """
        try:
            async with contextlib.aclosing(question.pieces.read()) as items:
                async for numbered in items:
                    assert numbered is not None, "this feed is read without pauses"
                    item = numbered[1]
                    assert not isinstance(item, Missed), "the feed holds a whole answer"
                    if isinstance(item, Exception):
                        raise told(item) from item
                    yield item
        finally:
            question.cancel()
            question.stream.questions -= 1
            self.worker.wake()

    async def answer(self, question: Question, request: Request | None = None) -> Answer:
        """The whole answer. If the client of `request` hangs up meanwhile, the question is cancelled."""
        watcher = (
            None if request is None else asyncio.create_task(cancel_when_gone(request, question, self.worker.wake))
        )
        try:
            async with contextlib.aclosing(self.pieces(question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Answer):
                        return piece
            raise AssertionError("a question ends with an answer or an error")
        finally:
            if watcher:
                watcher.cancel()

    # -------------------------------------------------------------------------------------------------- begin, end

    async def drain(self) -> None:
        """Refuse new work, tell everyone, and wait for the answers in flight, though not for ever."""
        self.is_draining = True
        for stream in self.streams.values():
            stream.events.add(Event("draining", {"within_s": self.limits.drain_s}))
        until = time.monotonic() + self.limits.drain_s
        while any(stream.questions for stream in self.streams.values()) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await self._save_memories()
        for stream in list(self.streams.values()):  # readers of events and sockets hang up by this
            stream.end("closed", "the server is shutting down")

    def _note(self, stream: Stream, event: Event) -> None:
        """Have an event kept, and bad pictures alerted where that is wanted; any thread."""
        if self.history is not None:
            self.history.note(stream, event)
        self.outgoing.note(stream, event)
        if event.kind == "alert":
            stream.newest_alert = event.facts
        if event.kind == "quality" and event.facts["new"] and self._on_bad_pictures(stream) != "tell":
            alert = picture_alert(stream, event)
            self.metrics.alerted(alert)
            self._send_alert(alert, stream.id)
            stream.events.add(Event("alert", alert_facts(stream, alert)))

    def _on_bad_pictures(self, stream: Stream) -> str:
        return self.watched.on_bad_pictures(stream.id) if stream.owner is None else "tell"

    def _send_alert(self, alert: Alert, stream_id: str) -> None:
        """Have an alert kept, and queue it for those outside; any thread."""
        stream = self.streams.get(stream_id)
        if self.history is not None and stream is not None:
            self.history.alerted(stream, alert, alert_facts(stream, alert))
        self.outgoing.alerted(stream, alert, stream_id)

    async def _save_memories(self) -> None:
        if self.memories and self.worker.is_ready:
            await self.memories.save_all(self.limits.drain_s)

    async def end(self) -> None:
        """Close every session and stop the worker."""
        self.is_draining = True
        await self._save_memories()
        for stream in list(self.streams.values()):
            stream.end("closed", "the server is shutting down")
        self.streams.clear()
        await asyncio.get_running_loop().run_in_executor(None, self.worker.stop)
        for one in (self.outgoing, self.history):
            if one is not None:
                await asyncio.get_running_loop().run_in_executor(None, one.close)
        self.pool.shutdown(wait=False, cancel_futures=True)


def told(error: Exception) -> Refusal:
    """The refusal a client gets for an error, which is logged if it is a fault of ours."""
    if not isinstance(error, Refusal | OnlookerError):
        LOG.error("unexpected error", exc_info=error)
    return of_error(error)
