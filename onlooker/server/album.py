"""Thumbnails of a stream, spread over its whole length, in a fixed number of bytes."""

import bisect
import threading


class Album:
    """Small JPEG pictures by stream time (seconds). When full, every other one goes, so that the beginning stays."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._times: list[float] = []
        self._pictures: list[bytes] = []
        self._lock = threading.Lock()
        self.num_bytes = 0

    def add(self, time_s: float, picture: bytes) -> None:
        """Keep a picture that is later than all before."""
        with self._lock:
            self._times.append(time_s)
            self._pictures.append(picture)
            self.num_bytes += len(picture)
            while self.num_bytes > self._most_bytes and len(self._times) > 1:
                # The newest stays: it is the one most likely asked for.
                last = len(self._times) - 1
                kept = [n for n in range(len(self._times)) if n % 2 == last % 2]
                self._times = [self._times[n] for n in kept]
                self._pictures = [self._pictures[n] for n in kept]
                self.num_bytes = sum(map(len, self._pictures))

    def nearest(self, time_s: float) -> tuple[float, bytes] | None:
        """The picture nearest to a moment, and its time; None when there is none."""
        with self._lock:
            if not self._times:
                return None
            place = bisect.bisect_left(self._times, time_s)
            near = [n for n in (place - 1, place) if 0 <= n < len(self._times)]
            best = min(near, key=lambda n: abs(self._times[n] - time_s))
            return self._times[best], self._pictures[best]

    def all(self) -> tuple[list[float], list[bytes]]:
        """The moments there are pictures of, and the pictures."""
        with self._lock:
            return list(self._times), list(self._pictures)

    def times(self) -> list[float]:
        """The moments there are pictures of."""
        with self._lock:
            return list(self._times)
