"""One live stream kept alive: a thread that makes one connection after another, and a mailbox for the newest picture.

Each connection is read by a process of its own (`live_reader`), because nothing else can be interrupted for sure: a
name lookup, a driver and a demuxer may all hang where no time limit reaches.
"""

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import Any

from onlooker.core.codec import CodecRecord
from onlooker.core.errors import SourceError
from onlooker.core.frame import Frame
from onlooker.video.clip import Clip
from onlooker.video.live_link import Link, Message, ReaderGone
from onlooker.video.live_place import LivePlace
from onlooker.video.live_reader import Job
from onlooker.video.live_state import LiveEvent, LiveSettings, LiveStatus, State, pause_s
from onlooker.video.source import SourceInfo, SourceReport

_LOG = logging.getLogger("onlooker.video")
# What starting a process may take on a busy machine.
_START_S = 60.0
_SILENCES = {"starting": "the reader did not start", "connecting": "no picture", "open": "no picture"}
_COUNTS = [one.name for one in fields(SourceReport) if one.name.startswith("num_") and one.name != "num_delivered"]


class Keeper:
    """Keeps a connection, and the newest picture; see the head of this file."""

    def __init__(
        self,
        place: LivePlace,
        settings: LiveSettings,
        on_event: Callable[[LiveEvent], None] | None,
        must_start: bool,
    ) -> None:
        self._place, self._settings, self._on_event, self._must_start = place, settings, on_event, must_start
        self.info = SourceInfo(name=place.name, live=True)
        self.report = SourceReport()
        self.state: State = "connecting"
        self._why: str | None = "it has not begun"
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._waiting: deque[tuple[Frame, float]] = deque(maxlen=settings.waiting)
        self._passed_over: CodecRecord | None = None
        self._link: Link | None = None
        self._began_s: float | None = None
        self._last_s: float | None = None
        self._first_s: float | None = None
        self._heard_s: float | None = None
        self._lag_s: float | None = None
        self._counted = dict.fromkeys(_COUNTS, 0)
        self._clips: dict[int, Future[Clip | None]] = {}
        self._num_clips = 0
        self._num_connections = self._num_failures = 0
        self._last_error: str | None = None
        self._since_s = time.monotonic()
        # A picture that sampling took is the newest until the next one is due.
        self._max_age_s = settings.stale_after_s + (0.0 if settings.fps is None else 1 / settings.fps)
        self._thread = threading.Thread(target=self._run, name="onlooker-live", daemon=True)

    # ------------------------------------------------------------------------------------------ for who reads

    def start(self) -> None:
        self._thread.start()

    def take(self, timeout_s: float | None = None) -> Frame | None:
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self.state != "ended":
                    self._drop(lambda arrived_s: time.monotonic() - arrived_s > self._max_age_s)
                if self._waiting:
                    frame = self._from_first_read(self._waiting.popleft()[0])
                    if self._settings.end_s is not None and frame.time_s >= self._settings.end_s:
                        self.report.num_skipped += 1
                        self.stop()
                        raise StopIteration
                    self.report.num_delivered += 1
                    return frame
                if self.state == "ended" or self._stop.is_set():
                    raise StopIteration
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(None if timeout_s is None else left_s)

    def _from_first_read(self, frame: Frame) -> Frame:
        """The frame at its time since the first that was read: what came while nobody read is no part of the stream."""
        if self._first_s is None:
            self._first_s = frame.time_s
        return replace(frame, time_s=frame.time_s - self._first_s)

    def wait_for_first(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._num_connections or self.state == "ended")
            if not self._num_connections:
                raise SourceError(
                    f"this shows no picture ({self._why})",
                    given=self._place.name,
                    do="check the address and that the sender runs",
                )

    def status(self) -> LiveStatus:
        with self._changed:
            now = time.monotonic()
            return LiveStatus(
                state=self.state,
                why=self._why,
                since_s=now - self._since_s,
                silent_s=None if self._heard_s is None else now - self._heard_s,
                lag_s=self._lag_s,
                num_connections=self._num_connections,
                num_failures=self._num_failures,
                last_error=self._last_error,
            )

    def clip(self, since_wall: float) -> "Future[Clip | None]":
        """What came since a time of day, cut from the encoded stream; None when there is nothing to cut from.
        A `SourceError` tells why what is there could not be cut."""
        made: Future[Clip | None] = Future()
        with self._changed:
            link = self._link
            if link is None or not self._settings.keep_s:
                made.set_result(None)
            else:
                self._num_clips += 1
                self._clips[self._num_clips] = made
                link.ask_clip(self._num_clips, since_wall)
        return made

    def _clipped(self, message: Message) -> None:
        with self._changed:
            made = self._clips.pop(message.facts["number"], None)
        if made is None:
            return
        kind, why = message.facts["media_type"], message.facts["why"]
        if why is not None:
            made.set_exception(SourceError("no clip of it can be cut", given=why))
        else:
            made.set_result(None if kind is None else Clip(message.data, kind))

    def stop(self) -> None:
        """Let everything end, without waiting for it."""
        self._stop.set()
        with self._changed:
            if self._link is not None:
                self._link.kill()
            self._drop(lambda arrived_s: True)
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._become("connecting")
            num_before = self._num_connections
            try:
                over = self._follow()
            except ReaderGone as gone:
                over = Message("over", {"why": str(gone), "is_final": False})
            except OSError as error:
                over = Message("over", {"why": f"no process could be started ({error.strerror})", "is_final": False})
            if self._stop.is_set():
                break
            why = str(over.facts["why"])
            if over.facts["is_final"] or (self._must_start and not self._num_connections):
                self._become("ended", why)
                return
            with self._changed:
                self._num_failures += 1
                self._last_error = why
            failures = 1 if self._num_connections > num_before else failures + 1
            self._become("lost", why, is_news=failures == 1)
            self._stop.wait(pause_s(self._settings, failures, random.random()))
        self._become("ended", "it was closed")

    def _follow(self) -> Message:
        """Keep one connection until it is over, for whatever reason; the last message says which."""
        settings = self._settings
        link = Link(self._job(), settings.lost_after_s)
        with self._changed:
            self._link = link
            self._counted = dict.fromkeys(_COUNTS, 0)
        try:
            heard_s, phase = time.monotonic(), "starting"
            while not self._stop.is_set():
                silent_s = time.monotonic() - heard_s
                limit_s = self._limit_s(phase)
                if silent_s >= limit_s:
                    return Message("over", {"why": f"{_SILENCES[phase]} for {limit_s:g} s", "is_final": False})
                next_s = limit_s
                if phase == "open" and silent_s >= settings.stale_after_s:
                    self._become("stale", f"no picture for {settings.stale_after_s:g} s")
                elif phase == "open":
                    next_s = settings.stale_after_s
                message = link.receive(min(next_s - silent_s, 3600.0))
                if message is None:
                    continue
                if message.kind == "clip":
                    self._clipped(message)
                    continue
                heard_s = time.monotonic()
                self._count(message)
                if message.kind == "over":
                    return message
                phase = "connecting" if message.kind == "ready" else "open"
                if phase == "open":
                    self._hear(message)
            return Message("over", {"why": "it was closed", "is_final": True})
        finally:
            with self._changed:
                self._link, unmade = None, list(self._clips.values())
                self._clips.clear()
            link.close()
            for made in unmade:
                made.set_result(None)

    def _limit_s(self, phase: str) -> float:
        """How long nothing need be heard."""
        if phase == "starting":
            return _START_S
        if phase == "connecting":
            return math.inf if self._place.listens else self._settings.connect_s
        return self._settings.lost_after_s

    def _job(self) -> Job:
        settings = self._settings
        return Job(
            address=self._place.address,
            fps=settings.fps,
            size=settings.size,
            aspect=settings.aspect,
            transport=settings.transport,
            connect_s=settings.connect_s,
            silence_s=settings.lost_after_s,
            max_lag_s=settings.stale_after_s,
            began_s=self._began_s,
            last_s=self._last_s,
            keep_s=settings.keep_s,
            codec=settings.codec,
        )

    def _hear(self, message: Message) -> None:
        facts = message.facts
        with self._changed:
            self._heard_s = time.monotonic()
            if message.kind == "opened":
                self._num_connections += 1
                self._began_s = facts["began_s"]
                known: dict[str, Any] = {name: facts[name] for name in ("fps", "codec", "rotation")}
                self.info = replace(self.info, size=tuple(facts["size"]), **known)
        if message.kind == "late":
            self._become("stale", f"its pictures come more than {self._settings.stale_after_s:g} s late")
            return
        self._become("live")
        if message.image is None:
            return
        frame = Frame(message.image, facts["time_s"], facts["wall_time_s"], codec=message.codec)
        with self._changed:
            if self._stop.is_set():
                self.report.num_dropped += 1
                return
            self._last_s, self._lag_s = frame.time_s, float(facts["lag_s"])
            if len(self._waiting) == self._waiting.maxlen:
                self._drop_oldest()
            self._waiting.append((frame.over(self._passed_over), time.monotonic() - self._lag_s))
            self._passed_over = None
            self._changed.notify_all()

    def _count(self, message: Message) -> None:
        """Add what this connection has counted since its last message."""
        counts = message.facts["counts"]
        with self._changed:
            for name in _COUNTS:
                setattr(self.report, name, getattr(self.report, name) + counts[name] - self._counted[name])
                self._counted[name] = counts[name]
            for line in counts["damage"]:
                self.report.note_damage(line)
            for line in counts["notes"]:
                self.report.note(line)

    def _become(self, state: State, why: str | None = None, is_news: bool = True) -> None:
        with self._changed:
            if state == self.state and why == self._why:
                return
            self.state, self._why, self._since_s = state, why, time.monotonic()
            if state in ("stale", "lost"):
                self._drop(lambda arrived_s: True)
            self._changed.notify_all()
        level = logging.WARNING if is_news and state in ("stale", "lost") else logging.INFO
        _LOG.log(level, "%s is %s%s", self._place.name, state, f": {why}" if why else "")
        if self._on_event is not None:
            try:
                self._on_event(LiveEvent(state, why, time.time()))
            except Exception:
                _LOG.exception("the listener to the events of %s failed", self._place.name)

    def _drop(self, is_old: Callable[[float], bool]) -> None:
        while self._waiting and is_old(self._waiting[0][1]):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Who reads the next picture is told by its encoder of the way since the last that was read."""
        frame, _ = self._waiting.popleft()
        self.report.num_dropped += 1
        if self._waiting:
            after, arrived_s = self._waiting[0]
            self._waiting[0] = (after.over(frame.codec), arrived_s)
        else:
            self._passed_over = frame.codec
