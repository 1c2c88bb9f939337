"""One session as the server knows it: what waits for the worker, what came of it, and who may use it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from onlooker.core.errors import InputError
from onlooker.core.events import FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine import Session, Watch
from onlooker.server.album import Album
from onlooker.server.feed import Feed
from onlooker.server.refusals import Refusal, gone, overloaded
from onlooker.server.settings import Limits
from onlooker.server.wire import frame_facts
from onlooker.video import Sampler

Policy = Literal["freshest", "every"]
State = Literal["live", "failed", "closed"]

EVENTS_KEPT = 512
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


@dataclass
class Arrived:
    """A frame that waits for the worker."""

    frame: Frame
    thumbnail: bytes | None
    received_s: float
    """When it arrived, on the monotonic clock: lag counts from there."""
    taken: "Future[Taken]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        # From here on it cannot be cancelled: a client that hangs up must not stand in the worker's way.
        self.taken.set_running_or_notify_cancel()


@dataclass(frozen=True)
class Taken:
    """What became of a frame; `event` is None when it was dropped for the reason given."""

    event: FrameTaken | None
    lag_s: float
    reason: str | None = None


@dataclass(frozen=True)
class Offered:
    """What a client hears at once about the frame it pushed."""

    arrived: Arrived | None
    """None when it was left out because it came sooner than the session's `fps`."""
    waiting: int


@dataclass
class Counts:
    """What happened to a stream's frames on this side of the engine."""

    received: int = 0
    skipped: int = 0
    """Left out because they came sooner than the session's `fps`."""
    dropped: int = 0
    """Gave way to a newer one, or came without credit."""
    refused: int = 0
    """Found the queue full, came too fast, or could not be read."""


class Stream:
    """One session of the server. `offer` is called from any thread, everything named `worker_` by the worker only."""

    def __init__(
        self, stream_id: str, owner: str | None, settings: StreamSettings, limits: Limits, wake: Callable[[], None]
    ) -> None:
        self.id, self.owner, self.settings, self._limits = stream_id, owner, settings, limits
        self.created = time.time()
        self.events: Feed[Event] = Feed(EVENTS_KEPT)
        self.album = Album(limits.thumbnail_bytes)
        self.counts = Counts()
        self.state: State = "live"
        self.why_ended: str | None = None
        self.source: dict[str, Any] | None = None
        """State of the source that feeds it, None for a pushed stream."""
        self.newest: Frame | None = None
        """The newest frame that was taken in."""
        self.stats: dict[str, Any] = {}
        self.lags: deque[float] = deque(maxlen=256)
        self.questions = 0
        """In flight; counted on the event loop."""
        self.used_s = self.began_s = time.monotonic()
        self.decoding = asyncio.Lock()
        """Held while a pushed picture is decoded: pictures come in as they were sent."""
        self.session: Session | None = None
        self.watch: Watch | None = None
        self._wake = wake
        self._at_end: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting: deque[Arrived] = deque()
        self._waits_since_s = 0.0
        self._sampler = Sampler(settings.fps)
        self._last_time_s: float | None = None
        self._pace = Bucket(limits.fps)

    # --------------------------------------------------------------------------------------------- frames coming in

    def offer(self, frame: Frame, thumbnail: bytes | None = None, received_s: float | None = None) -> Offered:
        """Hand in the next frame. It waits, takes the place of the one that waits, or is refused.

        Raises `Refusal`: 409 for a time that does not grow, 410 when the session has ended, 429 when too many come.
        """
        arrived = Arrived(frame, thumbnail, time.monotonic() if received_s is None else received_s)
        self.touch()
        with self._lock:
            self._check_live()
            self.counts.received += 1
            if self._last_time_s is not None and frame.time_s <= self._last_time_s:
                self.counts.refused += 1
                given = f"{frame.time_s:.3f} s after {self._last_time_s:.3f} s"
                raise Refusal(
                    409, "time_order", f"frames come in the order of their times; given: {given}", param="pts"
                )
            if not self._pace.take():
                self.counts.refused += 1
                raise overloaded("too_many_frames", f"at most {self._limits.fps:g} frames a second are accepted", 1)
            if not self._sampler.is_due(frame.time_s):
                self.counts.skipped += 1
                self._last_time_s = frame.time_s
                return Offered(None, len(self._waiting))
            if not self._waiting:
                self._waits_since_s = arrived.received_s
            self._make_room()
            self._sampler.wants(frame.time_s)
            self._last_time_s = frame.time_s
            self._waiting.append(arrived)
            waiting = len(self._waiting)
        self._wake()
        return Offered(arrived, waiting)

    def go_on_from(self, time_s: float | None) -> None:
        """Let the clock of a restored stream go on at the time of its last frame."""
        if time_s is not None:
            self._last_time_s = time_s
            self.began_s = time.monotonic() - time_s

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a frame may be offered without being refused or dropping another; for threads that feed."""
        with self._room:
            most = WAITING_EVERY if self.settings.policy == "every" else 1
            self._room.wait_for(lambda: len(self._waiting) < most or self.state != "live", timeout_s)
            return len(self._waiting) < most and self.state == "live"

    @property
    def is_waiting(self) -> bool:
        """Whether a frame waits for the worker."""
        return bool(self._waiting)

    @property
    def waits_since_s(self) -> float:
        """Since when a frame has been waiting here (monotonic clock); a newer one in its place waits as long."""
        return self._waits_since_s

    def touch(self) -> None:
        """Note that somebody uses this session."""
        self.used_s = time.monotonic()

    def check_live(self) -> None:
        """Raise `Refusal` (410) when the session has ended."""
        with self._lock:
            self._check_live()

    def _check_live(self) -> None:
        if self.state != "live":
            raise gone(self.id, self.why_ended or self.state)

    def _make_room(self) -> None:
        if self.settings.policy == "every":
            if len(self._waiting) >= WAITING_EVERY:
                self.counts.refused += 1
                raise overloaded("queue_full", f"{WAITING_EVERY} frames wait already; push with wait=true", 1)
            return
        while self._waiting:
            old = self._waiting.popleft()
            self.counts.dropped += 1
            old.taken.set_result(Taken(None, time.monotonic() - old.received_s, "a newer frame came"))

    # ------------------------------------------------------------------------------------------- what the worker does

    def worker_take(self) -> Arrived | None:
        """The frame that is next."""
        with self._room:
            arrived = self._waiting.popleft() if self._waiting else None
            if self._waiting:
                self._waits_since_s = time.monotonic()  # the next one's turn comes after everyone else's
            self._room.notify_all()
            return arrived

    def worker_took(self, arrived: Arrived, event: FrameTaken) -> None:
        """A frame is in memory: remember what clients may ask for, and tell."""
        lag_s = time.monotonic() - arrived.received_s
        self.lags.append(lag_s)
        self.newest = arrived.frame
        if arrived.thumbnail is not None:
            self.album.add(event.time_s, arrived.thumbnail)
        self.events.add(Event("frame", frame_facts(event, lag_s)))
        arrived.taken.set_result(Taken(event, lag_s))

    def worker_lost(self, arrived: Arrived, error: Exception) -> None:
        """A frame could not be taken in; the stream goes on."""
        self.events.add(Event("failed", {"time_s": arrived.frame.time_s, "message": str(error)}))
        arrived.taken.set_exception(error)

    def end(self, state: State, why: str) -> None:
        """Nothing is accepted any more; what waits is told so. Ending twice is fine."""
        with self._room:
            if self.state != "live":
                return
            self.state, self.why_ended = state, why
            waiting, self._waiting = list(self._waiting), deque()
            self._room.notify_all()
            at_end = list(self._at_end)
        for arrived in waiting:
            arrived.taken.set_exception(gone(self.id, why))
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

    # ------------------------------------------------------------------------------------------------------- telling

    @property
    def last_time_s(self) -> float | None:
        """The time of the newest frame that was handed in."""
        return self._last_time_s

    def lag(self, share: float) -> float | None:
        """A quantile of the newest 256 lags, in seconds."""
        lags = sorted(self.lags)
        return lags[min(len(lags) - 1, int(share * len(lags)))] if lags else None

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
            "fps": self.settings.fps,
            "trace": self.settings.trace,
            "source": self.source,
            "time_s": None if self.session is None else self.session.time_s,
            "frames": 0 if self.session is None else self.session.frames,
        }

    def figures(self) -> dict[str, Any]:
        """How this session is doing, in numbers."""
        return self.stats | {
            "received": self.counts.received,
            "skipped": self.counts.skipped,
            "dropped": self.counts.dropped,
            "refused": self.counts.refused,
            "waiting": len(self._waiting),
            "lag_p50_s": self.lag(0.5),
            "lag_p95_s": self.lag(0.95),
            "questions_in_flight": self.questions,
            "thumbnail_bytes": self.album.num_bytes,
            "readers": self.events.num_readers,
        }


class Bucket:
    """Lets through so many a second on average, and a second's worth at once."""

    def __init__(self, per_s: float, now: Callable[[], float] = time.monotonic) -> None:
        if not per_s > 0:
            raise InputError("a rate is above 0", given=str(per_s))
        self._per_s, self._now = per_s, now
        self._left, self._at = max(1.0, per_s), now()

    def take(self) -> bool:
        """Let one more through, or not."""
        now = self._now()
        self._left = min(max(1.0, self._per_s), self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
