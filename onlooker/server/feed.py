"""A feed: numbered items that any thread adds and any number of tasks read, each at its own pace, in bounded memory."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Missed:
    """A reader was too slow: so many items are gone."""

    count: int


class Feed(Generic[Item]):
    """The newest `keep` items, numbered from 1. Writers never wait; a reader that falls behind is told what it missed.

    There is no queue per reader, so slow readers cost nothing.
    """

    def __init__(self, keep: int, on_item: Callable[[Item], None] | None = None) -> None:
        """`on_item` is told every item, on the thread that adds it."""
        self._on_item = on_item
        self._items: deque[tuple[int, Item]] = deque(maxlen=keep)
        self._lock = threading.Lock()
        self._wakers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._newest = 0
        self.closed = False

    @property
    def newest(self) -> int:
        """The number of the newest item; 0 before the first."""
        return self._newest

    @property
    def num_readers(self) -> int:
        """Tasks that read right now."""
        return len(self._wakers)

    def add(self, item: Item) -> None:
        """Append an item. After `close` this does nothing: whoever writes last need not know who closed."""
        with self._lock:
            if self.closed:
                return
            self._newest += 1
            self._items.append((self._newest, item))
            self._wake()
        if self._on_item is not None:
            self._on_item(item)

    def close(self) -> None:
        """No item follows; readers end when they have read what is there."""
        with self._lock:
            self.closed = True
            self._wake()

    async def read(
        self, after: int = 0, pause_s: float | None = None
    ) -> AsyncGenerator[tuple[int, Item | Missed] | None]:
        """Items after number `after`, as they come. With `pause_s`, None whenever nothing came for so many seconds."""
        wake = asyncio.Event()
        with self._lock:
            self._wakers[wake] = asyncio.get_running_loop()
        try:
            while True:
                wake.clear()
                with self._lock:
                    waiting = [(number, item) for number, item in self._tail(after)]
                    closed = self.closed
                if waiting and waiting[0][0] > after + 1:
                    yield waiting[0][0] - 1, Missed(waiting[0][0] - after - 1)
                for number, item in waiting:
                    yield number, item
                    after = number
                if waiting:
                    continue
                if closed:
                    return
                try:
                    await asyncio.wait_for(wake.wait(), pause_s)
                except TimeoutError:
                    yield None
        finally:
            with self._lock:
                self._wakers.pop(wake, None)

    def _tail(self, after: int) -> list[tuple[int, Item]]:
        """What is kept and newer than `after`; at most a few dozen at a time, so that a reader never hogs the loop."""
        if not self._items or self._items[-1][0] <= after:
            return []
        first = max(0, after + 1 - self._items[0][0])
        return [self._items[place] for place in range(first, min(len(self._items), first + 64))]

    def _wake(self) -> None:
        for wake, loop in self._wakers.items():
            with contextlib.suppress(RuntimeError):  # the reader's loop has ended, and so has the reader
                loop.call_soon_threadsafe(wake.set)
