"""How often something may happen."""

import time
from collections.abc import Callable

from onlooker.core.errors import InputError


class Bucket:
    """Lets through so many a second on average, and at most `most` at once (None: a second's worth)."""

    def __init__(self, per_s: float, now: Callable[[], float] = time.monotonic, *, most: float | None = None) -> None:
        if not per_s > 0:
            raise InputError("a rate is above 0", given=str(per_s))
        self._per_s, self._now = per_s, now
        self._most = max(1.0, per_s) if most is None else most
        self._left, self._at = self._most, now()

    def take(self) -> bool:
        """Let one more through, or not."""
        now = self._now()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
