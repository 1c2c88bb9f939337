"""One stream on a scheduler: a mailbox for one frame, into which any thread may put, and the session behind it."""

import dataclasses
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.frame import Frame
from onlooker.engine.session import Session

if TYPE_CHECKING:
    from onlooker.engine.scheduler import Scheduler


@dataclass
class LaneCounts:
    """What became of the frames offered to one lane."""

    offered: int = 0
    taken: int = 0
    late: int = 0
    """Taken, but in memory later than promised."""
    dropped: int = 0
    """Replaced by a newer frame while they waited."""
    thinned: int = 0
    """Left out because of the frame rate (the lane's own, or the ladder's share of it)."""
    failed: int = 0


@dataclass
class _Waiting:
    frame: Frame
    arrived_s: float
    ready: bool


class Lane:
    """One stream on a scheduler: a mailbox for one frame, and the session behind it. Made by `Scheduler.open`."""

    def __init__(self, scheduler: "Scheduler", session: Session, fps: float) -> None:
        self.session, self.fps, self.counts = session, fps, LaneCounts()
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None
        self._last_s: float | None = None
        self._due_s: float | None = None

    def offer(self, frame: Frame, arrived_s: float | None = None) -> bool:
        """Hand in the newest frame, from any thread; False when it is not due at this frame rate.

        `arrived_s` is when it came, on the scheduler's clock (default: now). Raises `InputError` when its time does not
        lie after the last one's, `SessionClosed` after the lane was closed.
        """
        if self.session.closed:
            raise SessionClosed("the lane was closed", do="open a new one with scheduler.open()")
        arrived = self._scheduler.now() if arrived_s is None else arrived_s
        with self._lock:
            if self._last_s is not None and frame.time_s <= self._last_s:
                raise InputError(
                    "frames must come in the order of their times",
                    given=f"{frame.time_s:.3f} s after {self._last_s:.3f} s",
                    do="offer each moment once, oldest first; open a new lane for a new stream",
                )
            self._last_s = frame.time_s
            self.counts.offered += 1
            gap = 1.0 / (self.fps * self._scheduler.rung.fps_share)
            due = frame.time_s if self._due_s is None else self._due_s
            if frame.time_s < due - 0.1 * gap:
                self.counts.thinned += 1
                return False
            # From when it was due, so that jitter does not add up; but never two at once after a pause.
            self._due_s = max(due + gap, frame.time_s + 0.5 * gap)
            self.counts.dropped += self._waiting is not None
            self._waiting = _Waiting(frame, arrived, ready=self._scheduler.resizer is None)
            waiting = self._waiting
        if self._scheduler.resizer is None:
            self._scheduler.wake()
        else:
            self._scheduler.resizer.submit(self._resize, waiting)
        return True

    def close(self) -> None:
        """End the stream, from the thread that owns the engine: what waits is dropped, questions in flight end."""
        self._scheduler.remove(self)

    # ------------------------------------------------------------------------------------- what the scheduler calls

    @property
    def is_waiting(self) -> bool:
        """True while a frame was not taken yet, ready or still being resized."""
        return self._waiting is not None

    def waiting_since(self) -> float | None:
        """When the frame that could be taken now was offered; None when there is none."""
        waiting = self._waiting
        return waiting.arrived_s if waiting is not None and waiting.ready else None

    def take(self) -> tuple[Frame, float] | None:
        """The waiting frame and when it was offered."""
        with self._lock:
            waiting = self._waiting
            if waiting is None or not waiting.ready:
                return None
            self._waiting = None
            return waiting.frame, waiting.arrived_s

    def _resize(self, waiting: _Waiting) -> None:
        if self._waiting is not waiting:  # a newer one has come
            return
        image = self._scheduler.engine.resize(waiting.frame.image)
        with self._lock:
            waiting.frame = dataclasses.replace(waiting.frame, image=image)
            waiting.ready = True
        self._scheduler.wake()
