"""One stream on a scheduler: where its frames wait, into which any thread may put, and the session behind it."""

import copy
import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onlooker.core.codec import CodecRecord
from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.events import FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine.load import Share
from onlooker.engine.session import Session
from onlooker.engine.slo import Busy, DegradeLevel
from onlooker.video import FrameSampler

if TYPE_CHECKING:
    from onlooker.engine.scheduler import Scheduler

ASSUMED_FPS = 1.0
"""Frames a second promised to a stream that names no rate; what it submits beyond is taken when there is time."""
RATE_OVER_S = 10.0


@dataclass
class QueueCounts:
    """What became of the frames submitted to one queue."""

    submitted: int = 0
    taken: int = 0
    late: int = 0
    """Taken, but in memory later than promised."""
    dropped: int = 0
    """Replaced by a newer frame while they waited, or still waiting at the end."""
    thinned: int = 0
    """Left out because they came sooner than the queue's frame rate."""
    shed: int = 0
    """Left out because of the degrade levels's share of the frames."""
    failed: int = 0

    def add(self, other: "QueueCounts") -> None:
        """Count in what became of another's."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(eq=False)
class QueuedFrame:
    """A frame that waits for its step."""

    frame: Frame
    """As it was submitted."""
    arrived_s: float
    """When it came, on the scheduler's clock: lag counts from there."""
    note: Any = None
    """Whatever the caller wants to find here again."""
    picture: Frame | None = None
    """The same at the model's size; None while it is being resized."""


@dataclass(frozen=True)
class Taken:
    """What became of a frame; `event` is None when it was dropped for the reason given."""

    event: FrameTaken | None
    lag_s: float
    reason: str | None = None


Settle = Callable[[QueuedFrame, Taken | Exception], None]
"""Told once of every frame that waited what became of it, on whatever thread that was known first."""


def forget(queued: QueuedFrame, outcome: Taken | Exception) -> None:
    """Nobody wants to know."""


class StreamQueue:
    """One stream on a scheduler: a place for frames to wait, and the session behind it. Made by `Scheduler.open`.

    With `backlog` 0 the freshest frame wins: one waits, and one more while its picture is being resized. Otherwise so
    many wait in their order, none is left out under load, and more are refused: such a stream is in no hurry. It has
    its turns like all others, but nothing is promised to it, so that it counts for nothing in admission and load.
    """

    def __init__(
        self,
        scheduler: "Scheduler",
        session: Session,
        fps: float | None,
        backlog: int = 0,
        settle: Settle = forget,
    ) -> None:
        self.session, self.counts = session, QueueCounts()
        self.fps = ASSUMED_FPS if fps is None else fps
        """Frames a second that this queue is promised."""
        self._scheduler, self._backlog, self._settle = scheduler, backlog, settle
        self._room = threading.Condition()
        self._waiting: deque[QueuedFrame] = deque()
        self._ended: Exception | None = None
        self._since_s = 0.0
        self._sampler = FrameSampler(fps)
        self._last_s = session.time_s
        self._credit = 1.0
        self._born_s = scheduler.now()
        self._rate = Share(RATE_OVER_S)
        self._left_out: CodecRecord | None = None
        """What the encoder said of frames left out since the last that waited."""

    # ------------------------------------------------------------------------------------------------ from any thread

    def submit(self, frame: Frame, arrived_s: float | None = None, note: Any = None) -> QueuedFrame | None:
        """Hand in the newest frame, from any thread; None when it is left out: not due at this rate, or shed.

        `arrived_s` is when it came, on the scheduler's clock (default: now). Raises `InputError` when its time does not
        lie after the last one's, `Busy` when the backlog is full, `SessionClosed` after the queue was closed.
        """
        arrived = self._scheduler.now() if arrived_s is None else arrived_s
        with self._room:
            if self._ended is not None:
                raise _again(self._ended)
            if self.session.closed:
                raise SessionClosed("the queue's session was closed", do="open a new one with scheduler.open()")
            if not isinstance(frame, Frame):
                raise InputError("a queue takes frames", given=type(frame).__name__, do="submit Frame(image, time_s)")
            if self._last_s is not None and frame.time_s <= self._last_s:
                raise InputError(
                    "frames must come in the order of their times",
                    given=f"{frame.time_s:.3f} s after {self._last_s:.3f} s",
                    do="submit each moment once, oldest first; open a new queue for a new stream",
                )
            if self._backlog and len(self._waiting) >= self._backlog:
                raise Busy("no room for another frame", given=f"{len(self._waiting)} frames wait", retry_s=1.0)
            self.counts.submitted += 1
            self._last_s = frame.time_s
            frame, self._left_out = frame.over(self._left_out), None
            if not self._sampler.wants(frame.time_s):
                self.counts.thinned += 1
                self._left_out = frame.codec
                return None
            self._rate.note(1.0, arrived)
            if not self._backlog and not self._may_pass():
                self.counts.shed += 1
                self._left_out = frame.codec
                return None
            queued = QueuedFrame(frame, arrived, note, frame if self._scheduler.resizer is None else None)
            if not self._waiting:
                self._since_s = arrived
            self._waiting.append(queued)
            replaced = self._replaced()
        self._tell_replaced(replaced)
        if self._scheduler.resizer is None:
            self._scheduler.wake()
        else:
            try:
                self._scheduler.resizer.submit(self._resize, queued)
            except RuntimeError as error:  # its threads ended in this moment, and with them the queue
                raise closed() from error
        return queued

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a frame may be submitted without being refused or taking another's place; whether it may."""

        def has_room() -> bool:
            return len(self._waiting) < max(1, self._backlog)

        with self._room:
            self._room.wait_for(lambda: has_room() or self._ended is not None, timeout_s)
            return has_room() and self._ended is None

    def end(self, why: Exception) -> None:
        """Take nothing more and let go of what waits; `why` is what is raised and told from now on. Any thread."""
        with self._room:
            if self._ended is not None:
                return
            self._ended = why
            waiting, self._waiting = list(self._waiting), deque()
            self.counts.dropped += len(waiting)
            self._room.notify_all()
        for queued in waiting:
            self._settle(queued, why)

    @property
    def last_time_s(self) -> float | None:
        """The time of the newest frame that was handed in."""
        return self._last_s

    @property
    def degrade_level(self) -> DegradeLevel:
        """What is done for all streams now."""
        return self._scheduler.degrade_level

    @property
    def num_waiting(self) -> int:
        """Frames that were not taken yet, ready or still being resized."""
        return len(self._waiting)

    @property
    def is_waiting(self) -> bool:
        """True while a frame was not taken yet, ready or still being resized."""
        return bool(self._waiting)

    # ------------------------------------------------------------------------------------- from the engine's thread

    def close(self) -> None:
        """End the stream, from the thread that owns the engine: what waits is dropped, questions in flight end."""
        self._scheduler.remove(self)

    def submitted_fps(self, now: float) -> float:
        """Frames a second this queue has submitted of late, of those it was promised."""
        if self._backlog:
            return 0.0
        with self._room:
            return min(self.fps, self._rate.at(now))

    def promised_fps(self, now: float) -> float:
        """Frames a second to keep free for this queue: all it was promised while it is young, later what it submits."""
        is_young = now - self._born_s < RATE_OVER_S and not self._backlog
        return self.fps if is_young else self.submitted_fps(now)

    def device_bytes(self) -> int:
        """Bytes that its session holds on the device."""
        held = self.session.stats().memory_bytes
        return sum(size for name, size in held.items() if not name.startswith("host"))

    def first_ready(self) -> list[tuple[float, QueuedFrame]]:
        """The frame that could be taken now and since when its turn has been waited for; none, or one.

        A newer frame in the place of one that waited does not lose its turn.
        """
        with self._room:
            ready = self._ready()
            return [] if ready is None else [(self._since_s, ready)]

    def take(self) -> QueuedFrame | None:
        """The frame whose turn it is."""
        with self._room:
            queued = self._ready()
            if queued is not None:
                self._waiting.remove(queued)
                self._since_s = self._scheduler.now()  # the next one's turn comes after everyone else's
                self._room.notify_all()
            return queued

    def settle(self, queued: QueuedFrame, outcome: Taken | Exception) -> None:
        """Tell what became of a frame that was taken."""
        self._settle(queued, outcome)

    # -------------------------------------------------------------------------------------------------------- inside

    def _may_pass(self) -> bool:
        """Let the degrade levels's share of the frames through, evenly, whatever their rate."""
        share = self.degrade_level.fps_share
        self._credit = min(1.0, self._credit + share)
        if self._credit < 1.0 - 1e-9:
            return False
        self._credit -= 1.0
        return True

    def _ready(self) -> QueuedFrame | None:
        first = self._waiting[0] if self._waiting else None
        return first if first is not None and first.picture is not None else None

    def _replaced(self) -> list[QueuedFrame]:
        """What gives way to something fresher. The oldest stays until another is ready: else a stream that is faster
        than the resizing would never be seen."""
        if self._backlog:
            return []
        newest = max((n for n, queued in enumerate(self._waiting) if queued.picture is not None), default=0)
        gone = [queued for n, queued in enumerate(self._waiting) if n < newest or newest < n < len(self._waiting) - 1]
        for queued in gone:
            self._remove(queued)
        self.counts.dropped += len(gone)
        return gone

    def _remove(self, queued: QueuedFrame) -> None:
        """The next frame is told of the way over this one, or the next that comes."""
        after = self._waiting.index(queued)
        del self._waiting[after]
        if after == len(self._waiting):
            self._left_out = queued.frame.codec
            return
        follower = self._waiting[after]
        follower.frame = follower.frame.over(queued.frame.codec)
        if follower.picture is not None:
            follower.picture = dataclasses.replace(follower.picture, codec=follower.frame.codec)

    def _tell_replaced(self, replaced: list[QueuedFrame]) -> None:
        for queued in replaced:
            self._settle(queued, Taken(None, self._scheduler.now() - queued.arrived_s, "a newer frame came"))

    def _resize(self, queued: QueuedFrame) -> None:
        if queued not in self._waiting:  # a fresher one has come, or the end
            return
        try:
            image = self._scheduler.engine.resize(queued.frame.image)
        except Exception as error:
            with self._room:
                if queued not in self._waiting:
                    return
                self._remove(queued)
                self.counts.failed += 1
                self._room.notify_all()
            self._settle(queued, error)
            return
        with self._room:
            queued.picture = dataclasses.replace(queued.frame, image=image)
            replaced = self._replaced()
        self._tell_replaced(replaced)
        self._scheduler.wake()


def _again(why: Exception) -> Exception:
    """The reason of an end, to be raised once more: one error raised by many would collect all their tracebacks."""
    return copy.copy(why).with_traceback(None)


def closed() -> SessionClosed:
    """What is raised when a queue is used after its end."""
    return SessionClosed("the queue was closed", do="open a new one with scheduler.open()")
