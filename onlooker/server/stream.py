"""One session as the server knows it: what waits for the worker, what came of it, and who may use it."""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from opentelemetry.context import Context, get_current

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.engine import Busy, Session, StreamQueue, Watch
from onlooker.engine.stream_queue import QueueCounts, QueuedFrame, Taken
from onlooker.server.album import Album
from onlooker.server.feed import Feed
from onlooker.server.pace import Bucket
from onlooker.server.quality import Quality
from onlooker.server.refusals import Refusal, gone, overloaded
from onlooker.server.settings import Limits
from onlooker.server.wire import frame_facts

Policy = Literal["freshest", "every"]
State = Literal["live", "failed", "closed"]

EVENTS_KEPT = 512
STALE_S = 10.0
"""Seconds (and two pauses between frames) after which the newest picture of a source is called stale in any state."""
WAITING_EVERY = 16
"""Frames that may wait under the policy `every`; under `freshest` it is one."""


@dataclass(frozen=True)
class Event:
    """Something a client may want to know: a kind, and JSON-able facts."""

    kind: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class StreamSettings:
    """What a session is asked to be."""

    policy: Policy = "freshest"
    fps: float | None = None
    """Frames taken per second of the stream; None for all that are pushed."""
    trace: bool = False
    label: str | None = None
    source_fps: float | None = None
    """Frames that its source gives per second; None for a session that is pushed."""
    lag_s: float | None = None
    """Seconds within which a frame is promised to be in memory; None for the server's promise."""


@dataclass
class Arrived:
    """A frame that waits for the worker."""

    frame: Frame
    thumbnail: bytes | None
    taken: "Future[Taken]" = field(default_factory=Future)
    context: Context = field(default_factory=get_current)
    """What it belongs to, for whoever records spans."""

    def __post_init__(self) -> None:
        # From here on it cannot be cancelled: a client that hangs up must not stand in the worker's way.
        self.taken.set_running_or_notify_cancel()


@dataclass(frozen=True)
class Offered:
    """What a client hears at once about the frame it pushed."""

    arrived: Arrived | None
    """None when it was left out."""
    waiting: int
    reason: str | None = None
    """Why it was left out."""


@dataclass
class Counts:
    """What happened to a stream's frames before they came to its queue."""

    received: int = 0
    without_credit: int = 0
    """Came on a WebSocket without credit, and were dropped."""
    refused: int = 0
    """Found the queue full, came too fast, or could not be read."""


class Stream:
    """One session of the server, around one queue of the worker's scheduler. `submit` is called from any thread."""

    def __init__(
        self,
        stream_id: str,
        owner: str | None,
        settings: StreamSettings,
        limits: Limits,
        on_event: "Callable[[Stream, Event], None] | None" = None,
    ) -> None:
        """`on_event` is told every event, on whichever thread it happens."""
        self.id, self.owner, self.settings, self._limits = stream_id, owner, settings, limits
        self.created = time.time()
        self.run = secrets.token_hex(4)
        """Begins the ids of its events, so that an id of an earlier run of a source is told from one of this."""
        self.events: Feed[Event] = Feed(EVENTS_KEPT, None if on_event is None else lambda event: on_event(self, event))
        self.album = Album(limits.thumbnail_bytes)
        self.counts = Counts()
        self.state: State = "live"
        self.why_ended: str | None = None
        self.source: dict[str, Any] | None = None
        """State of the source that feeds it, None for a pushed stream."""
        self.newest: Frame | None = None
        """The newest frame that was taken in."""
        self._clock: tuple[float, float] | None = None
        """Stream time and time of day (seconds since the epoch) of one moment."""
        self.restored: tuple[float, float] | None = None
        """Stream time and time of day up to which it remembers an earlier run of the server."""
        self.quality = Quality()
        self.kept_s: float | None = None
        """Stream time up to which its memory is on disk."""
        self.newest_alert: dict[str, Any] | None = None
        """The facts of the last alert."""
        self.connections = 0
        """Times that its source came up."""
        self.late = 0
        """Frames that came into memory later than its source is promised."""
        self.stats: dict[str, Any] = {}
        self.lags: deque[float] = deque(maxlen=256)
        self.questions = 0
        """In flight; counted on the event loop."""
        self.used_s = self.began_s = time.monotonic()
        self.decoding = asyncio.Lock()
        """Held while a pushed picture is decoded: pictures come in as they were sent."""
        self.queue: StreamQueue | None = None
        """Given by the worker when it opens the stream."""
        self.watch: Watch | None = None
        self._at_end: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._pace = Bucket(limits.fps)

    @property
    def session(self) -> Session | None:
        """The engine's session; None until the worker has opened it."""
        return None if self.queue is None else self.queue.session

    @property
    def backlog(self) -> int:
        """Frames that may wait, as a queue counts them."""
        return WAITING_EVERY if self.settings.policy == "every" else 0

    # --------------------------------------------------------------------------------------------- frames coming in

    def submit(self, frame: Frame, thumbnail: bytes | None = None, received_s: float | None = None) -> Offered:
        """Hand in the next frame. It waits, takes the place of the one that waits, is left out, or is refused.

        Raises `Refusal`: 409 for a time that does not grow, 410 when the session has ended, 429 when too many come.
        """
        arrived = Arrived(frame, thumbnail)
        self.touch()
        before = set(self.quality.problems)
        if self.quality.see(frame, time.time()):
            problems, texts = self.quality.problems, self.quality.texts
            new = [name for name in problems if name not in before]
            facts = {"time_s": frame.time_s, "problems": problems, "texts": texts, "new": new}
            self.events.add(Event("quality", facts | {"wall": self.wall_of(frame.time_s)}))
        with self._lock:
            queue = self._live_queue()
            self.counts.received += 1
            if not self._pace.take():
                self.counts.refused += 1
                raise overloaded("too_many_frames", f"at most {self._limits.fps:g} frames a second are accepted", 1)
            shed = queue.counts.shed
            try:
                queued = queue.submit(frame, received_s, arrived)
            except InputError as error:
                self.counts.refused += 1
                raise Refusal(409, "time_order", f"{error.what}; given: {error.given}", param="pts") from error
            except Busy as error:
                self.counts.refused += 1
                why = f"{error.what} ({error.given}); push with wait=true"
                raise overloaded("queue_full", why, error.retry_s) from error
        if queued is not None:
            return Offered(arrived, queue.num_waiting)
        busy = f"the server has too much to do: {queue.degrade_level.name}" if queue.counts.shed > shed else None
        return Offered(None, queue.num_waiting, busy or "sooner than the session's fps")

    def settle(self, queued: QueuedFrame, outcome: Taken | Exception) -> None:
        """Hear from the queue what became of a frame; remember what clients may ask for, and tell. Any thread."""
        arrived: Arrived = queued.note
        if isinstance(outcome, Exception):
            if self.state == "live":
                self.events.add(Event("failed", {"time_s": queued.frame.time_s, "message": str(outcome)}))
            arrived.taken.set_exception(outcome)
            return
        if outcome.event is not None:
            self.lags.append(outcome.lag_s)
            self.late += self.settings.lag_s is not None and outcome.lag_s > self.settings.lag_s
            self.newest = queued.frame
            seen = queued.frame.wall_time_s
            wall = time.time() - outcome.lag_s if seen is None else seen
            self._clock = (queued.frame.time_s, wall)
            if arrived.thumbnail is not None:
                self.album.add(outcome.event.time_s, arrived.thumbnail)
            self.events.add(Event("frame", frame_facts(outcome.event, outcome.lag_s) | {"wall": round(wall, 3)}))
        arrived.taken.set_result(outcome)

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a frame may be submitted without being refused or dropping another; for threads that feed."""
        assert self.queue is not None, "a stream is open before anyone feeds it"
        return self.queue.wait_for_room(timeout_s)

    @property
    def num_waiting(self) -> int:
        """Frames that wait for the worker."""
        return 0 if self.queue is None else self.queue.num_waiting

    def touch(self) -> None:
        """Note that somebody uses this session."""
        self.used_s = time.monotonic()

    def check_live(self) -> None:
        """Raise `Refusal` (410) when the session has ended."""
        with self._lock:
            self._live_queue()

    def _live_queue(self) -> StreamQueue:
        if self.state != "live":
            raise gone(self.id, self.why_ended or self.state)
        assert self.queue is not None, "a stream is open before anyone can use it"
        return self.queue

    def end(self, state: State, why: str) -> None:
        """Nothing is accepted any more; what waits is told so. Ending twice is fine."""
        with self._lock:
            if self.state != "live":
                return
            self.state, self.why_ended = state, why
            at_end = list(self._at_end)
        if self.queue is not None:
            self.queue.end(gone(self.id, why))
        for act in at_end:
            act()
        self.events.add(Event("closed", {"state": state, "why": why}))
        self.events.close()

    def at_end(self, act: Callable[[], object]) -> None:
        """Have something done, quickly, when this stream ends; at once if it has."""
        with self._lock:
            if self.state == "live":
                self._at_end.append(act)
                return
        act()

    def go_on(self, time_s: float, wall: float) -> None:
        """Its session was restored: it remembers up to this moment, given in stream time and time of day (seconds)."""
        self._clock = self.restored = (time_s, wall)
        self.kept_s = time_s

    @property
    def offset_s(self) -> float:
        """What is added to the times of a source that begins now: the time it remembers, and how long ago that was."""
        return 0.0 if self.restored is None else self.restored[0] + max(0.001, time.time() - self.restored[1])

    # ------------------------------------------------------------------------------------------------------- telling

    def wall_of(self, time_s: float) -> float | None:
        """The time of day of a moment of the stream, in seconds since the epoch; None before its first frame."""
        return None if self._clock is None else round(self._clock[1] + time_s - self._clock[0], 3)

    @property
    def age_s(self) -> float | None:
        """Seconds since the newest frame was taken, by the time of day; None before the first."""
        newest = self.newest
        seen = None if newest is None else self.wall_of(newest.time_s)
        return None if seen is None else max(0.0, time.time() - seen)

    @property
    def is_stale(self) -> bool:
        """Whether its newest picture is held from before, and not what there is to see now."""
        age_s, fps = self.age_s, self.settings.source_fps
        if self.source is None or age_s is None:
            return False  # who pushes knows best
        return self.source["state"] != "live" or age_s > STALE_S + (2.0 / fps if fps else 0.0)

    def warnings(self, time_s: float) -> list[str]:
        """Why what is said about a moment may not be trusted; nothing for moments that have passed."""
        if self.newest is None or time_s < self.newest.time_s:
            return []
        held = [f"the newest picture is {self.age_s or 0.0:.0f} s old"] if self.is_stale else []
        return held + self.quality.texts

    @property
    def memory_bytes(self) -> int:
        """Bytes it holds: the engine's, as of the last second, and its pictures."""
        newest = self.newest
        pictures = self.album.num_bytes + (0 if newest is None else newest.image.nbytes)
        return sum(self.stats.get("memory_bytes", {}).values()) + pictures

    @property
    def last_time_s(self) -> float | None:
        """The time of the newest frame that was handed in."""
        return None if self.queue is None else self.queue.last_time_s

    def lag(self, share: float) -> float | None:
        """A quantile of the newest 256 lags, in seconds."""
        lags = sorted(self.lags)
        return lags[min(len(lags) - 1, int(share * len(lags)))] if lags else None

    @property
    def lost(self) -> dict[str, int]:
        """Frames that did not reach the model, by reason."""
        queue = self.queue.counts if self.queue is not None else QueueCounts()
        return {
            "dropped": queue.dropped + self.counts.without_credit,
            "skipped": queue.thinned,
            "shed": queue.shed,
            "refused": self.counts.refused,
        }

    def describe(self) -> dict[str, Any]:
        """What a client is told of this session."""
        return {
            "session_id": self.id,
            "label": self.settings.label,
            "created": round(self.created, 3),
            "state": self.state,
            "why_ended": self.why_ended,
            "shared": self.owner is None,
            "policy": self.settings.policy,
            "fps": self.settings.fps or self.settings.source_fps,
            "trace": self.settings.trace,
            "source": self.source,
            "restored_s": None if self.restored is None else self.restored[0],
            "kept_s": self.kept_s,
            "serving": None if self.queue is None else self.queue.degrade_level.name,
            "time_s": None if self.session is None else self.session.time_s,
            "frames": 0 if self.session is None else self.session.frames,
            "stale": self.is_stale,
            "age_s": None if (age_s := self.age_s) is None else round(age_s, 3),
            "problems": self.quality.problems,
            "warnings": [] if self.newest is None else self.warnings(self.newest.time_s),
        }

    def figures(self) -> dict[str, Any]:
        """How this session is doing, in numbers."""
        return self.stats | {
            "received": self.counts.received,
            **self.lost,
            "late": 0 if self.queue is None else self.queue.counts.late,
            "waiting": self.num_waiting,
            "lag_p50_s": self.lag(0.5),
            "lag_p95_s": self.lag(0.95),
            "questions_in_flight": self.questions,
            "thumbnail_bytes": self.album.num_bytes,
            "readers": self.events.num_readers,
        }
