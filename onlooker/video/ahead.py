"""Frames read on a thread of their own, a few ahead: who takes them need not wait for a decoder or a network."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame


class Ahead:
    """Reads frames at most `most` ahead, in their order, on a thread that ends with them or with `close`.

    Use it with `with`, inside the one of the source it reads. What the source raises is raised here, after the frames
    that came before it. For sources that can wait: of a live one, frames that lie here would grow old.
    """

    def __init__(self, frames: Iterator[Frame], most: int = 2) -> None:
        if most < 1:
            raise InputError("at least one frame is read ahead", given=str(most), do="most=2")
        self._frames, self._most = frames, most
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_over = self._is_closed = False
        self._thread = threading.Thread(target=self._read, name="onlooker-ahead", daemon=True)
        self._thread.start()

    def next_within(self, timeout_s: float | None) -> Frame | None:
        """The next frame, or None when there is none in so many seconds (None waits for ever).

        Raises `StopIteration` at the end, and what the source raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over or self._is_closed, timeout_s)
            if self._waiting:
                frame = self._waiting.popleft()
                self._changed.notify_all()
                return frame
            error, self._error = self._error, None
            if error is not None:
                raise error
            if self._is_over or self._is_closed:
                raise StopIteration
            return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        frame = self.next_within(None)
        assert frame is not None, "it waits for ever"
        return frame

    def close(self) -> None:
        """Let the thread end; it may still be at the frame it was reading. Calling it again does nothing."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for frame in self._frames:
                with self._changed:
                    self._waiting.append(frame)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._waiting) < self._most or self._is_closed)
                    if self._is_closed:
                        return
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()


def changed(frames: Iterator[Frame], change: Callable[[Frame], Frame], workers: int) -> Iterator[Frame]:
    """Frames in their order, each changed (resized, say) on one of so many threads, at most twice as many at once.

    Raises what the source or `change` raised, after the frames that came before it. Raises `InputError` for fewer than
    one worker.
    """
    if workers < 1:
        raise InputError("frames are changed by at least one worker", given=str(workers), do="workers=4")
    flying: deque[Future[Frame]] = deque()
    error: BaseException | None = None
    with ThreadPoolExecutor(workers, "onlooker-change") as pool:
        try:
            while error is None:
                try:
                    flying.append(pool.submit(change, next(frames)))
                except BaseException as ended:  # the end, or what went wrong: first come those that are on their way
                    error = ended
                while flying and (error is not None or len(flying) >= 2 * workers):
                    yield flying.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if not isinstance(error, StopIteration):
        raise error
