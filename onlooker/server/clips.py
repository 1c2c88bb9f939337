"""Clips of alerts: cut from the encoded stream a little after the alert, and kept with it."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate

from onlooker.core.errors import OnlookerError
from onlooker.server.logs import redact
from onlooker.video.clip import Clip

LOG = logging.getLogger("onlooker.server")
AFTER_S = 2.0
"""Seconds of video after the alert that its clip shows."""
LONGEST_S = 15.0
"""Most seconds from what an alert saw to the alert that a clip shows; rules that hold longer show their end."""
WAITING = 64
"""Most clips that wait to be cut; further ones are left out and counted."""
Cut = Callable[[str, float], "Future[Clip | None] | None"]


class Clips:
    """One thread that cuts clips when they are due, and hands them to `keep` with the number of their alert."""

    def __init__(self, cut: Cut, keep: Callable[[int, Clip], None]) -> None:
        """`cut` gives what a stream (by name) sent since a time of day."""
        self._cut, self._keep = cut, keep
        self._due: list[tuple[float, int, int, str, float]] = []
        self._number = itertools.count()
        self._changed = threading.Condition()
        self._ends = False
        self.made = self.missed = self.failed = 0
        self._thread = threading.Thread(target=self._run, name="onlooker-clips", daemon=True)
        self._thread.start()

    def add(self, event: int, stream: str, since_wall: float, until_wall: float) -> None:
        """Have the clip of an alert cut that begins and ends at these times of day (seconds since the epoch)."""
        with self._changed:
            if len(self._due) >= WAITING:
                self.missed += 1
                return
            heapq.heappush(self._due, (until_wall, next(self._number), event, stream, since_wall))
            self._changed.notify()

    def close(self) -> None:
        """Cut no more; what waits is left out."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join(10.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ends and not (self._due and self._due[0][0] <= time.time()):
                    self._changed.wait(max(0.0, self._due[0][0] - time.time()) if self._due else None)
                if self._ends:
                    return
                _, _, event, stream, since_wall = heapq.heappop(self._due)
            made = self._cut(stream, since_wall)
            try:
                clip = None if made is None else made.result(10.0)
            except TooLate:
                self.missed += 1
                continue
            except OnlookerError as error:
                self.failed += 1
                LOG.warning("alert %d of source %s has no clip: %s", event, stream, redact(str(error)))
                continue
            if clip is not None:
                self.made += 1
                self._keep(event, clip)
