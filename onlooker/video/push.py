"""Frames the caller has: pushed in from any thread on one side, a `Source` on the other."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from onlooker.core.errors import CapacityError, InputError, SourceError
from onlooker.core.frame import Frame
from onlooker.video.frame_sampling import FrameSampler
from onlooker.video.source import Source, SourceInfo, SourceReport

Policy = Literal["block", "drop_oldest", "refuse"]


class PushSource(Source):
    """A bounded queue of frames between a producer and the loop that reads them.

    `capacity`: frames the queue holds. `policy` when it is full: "block" makes `push` wait, "drop_oldest" throws away
    the oldest waiting frame and counts it in `report.num_dropped` (freshest wins), "refuse" raises `CapacityError`.
    `fps`: take only the frames due (see `FrameSampler`); None for all. `timeout_s`: the longest the reading side waits
    for a frame before it raises `SourceError`, None for ever; reading may be tried again afterwards.
    `copy=False` saves copying each image, for callers who never write into it again. `now` is the clock, in seconds.
    """

    def __init__(
        self,
        capacity: int = 32,
        policy: Policy = "block",
        *,
        fps: float | None = None,
        timeout_s: float | None = None,
        copy: bool = True,
        name: str = "push",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if type(capacity) is not int or capacity < 1:
            raise InputError("capacity must be a whole number >= 1", given=repr(capacity), do="capacity=32")
        if policy not in ("block", "drop_oldest", "refuse"):
            raise InputError(
                "policy must be 'block', 'drop_oldest' or 'refuse'", given=repr(policy), do="policy='block'"
            )
        _check_timeout(timeout_s)
        self._capacity = capacity
        self._policy = policy
        self._timeout_s = timeout_s
        self._copy = copy
        self._now = now
        self._sampler = FrameSampler(fps)
        self._info = SourceInfo(name=name, live=True)
        self._report = SourceReport()
        self._queue: deque[Frame] = deque()
        # Producers take turns, so that the order of arrival is the order of times even while one waits for room.
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._began: float | None = None
        self._is_timed_by_caller: bool | None = None
        self._last_time_s = 0.0
        self._ended: str | None = None

    @property
    def info(self) -> SourceInfo:
        """Facts about the source; `size` is known from the first frame on."""
        return self._info

    @property
    def report(self) -> SourceReport:
        return self._report

    @property
    def has_ended(self) -> bool:
        """Whether `end` or `close` was called: nothing can be pushed any more."""
        return self._ended is not None

    def push(
        self,
        image: np.ndarray,
        time_s: float | None = None,
        *,
        wall_time_s: float | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Hand in one picture, uint8 RGB [rows, cols, 3].

        `time_s`: seconds since the stream began, never less than the last; None takes the time since the first push.
        One source uses one of the two ways. `timeout_s`: the longest wait for room under policy "block".
        Raises `InputError` (bad picture, time running backwards, pushing after the end) and `CapacityError` (no room).
        """
        _check_timeout(timeout_s)
        arrived = self._now()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise self._full(timeout_s)
        try:
            frame = self._checked(image, time_s, wall_time_s, arrived)
            with self._changed:
                self._refuse_if_ended()
                if self._sampler.is_due(frame.time_s):
                    self._make_room(deadline, timeout_s)
                self._accept(frame, is_timed_by_caller=time_s is not None, arrived=arrived)
        finally:
            self._turn.release()

    def end(self, damage: str | None = None) -> None:
        """Say that no frame follows: what waits is still delivered, then the loop ends. Calling it again does nothing.

        `damage` tells, in words, that the stream broke off; it appears in `report.damage`.
        """
        with self._changed:
            if self._ended is None:
                self._ended = "end() was called"
                if damage is not None:
                    self._report.note_damage(damage)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop at once: waiting frames are dropped and counted, waiting producers get `InputError`."""
        with self._changed:
            self._ended = "the reading side was closed"
            self._report.num_dropped += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()

    def __next__(self) -> Frame:
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._queue) or self._ended is not None, self._timeout_s):
                raise SourceError(
                    f"no frame arrived for {self._timeout_s} s",
                    given=self._info.name,
                    do="check the producer, or end()",
                )
            if not self._queue:
                raise StopIteration
            frame = self._queue.popleft()
            self._report.num_delivered += 1
            self._changed.notify_all()
            return frame

    def _checked(self, image: np.ndarray, time_s: float | None, wall_time_s: float | None, arrived: float) -> Frame:
        is_timed_by_caller = time_s is not None
        if self._is_timed_by_caller not in (None, is_timed_by_caller):
            raise InputError(
                "some frames came with a time and some without",
                given=f"time_s={time_s!r}",
                do="pass time_s always or never",
            )
        if time_s is None:
            began = arrived if self._began is None else self._began
            # Threads may take their turns in another order than they read the clock.
            time_s = max(arrived - began, self._last_time_s)
        elif isinstance(time_s, bool) or not isinstance(time_s, int | float | np.floating | np.integer):
            raise InputError("time_s must be a number of seconds", given=repr(time_s), do="time_s=12.5")
        frame = Frame(image, float(time_s), wall_time_s)
        if frame.time_s < self._last_time_s:
            raise InputError(
                "time runs backwards",
                given=f"time_s={frame.time_s} after {self._last_time_s}",
                do="push frames in the order they are shown",
            )
        return replace(frame, image=image.copy()) if self._copy else frame

    def _refuse_if_ended(self) -> None:
        if self._ended is not None:
            raise InputError("nothing can be pushed any more", given=self._ended, do="open a new PushSource")

    def _make_room(self, deadline: float | None, timeout_s: float | None) -> None:
        while len(self._queue) >= self._capacity:
            if self._policy == "drop_oldest":
                self._queue.popleft()
                self._report.num_dropped += 1
                continue
            remaining = None if deadline is None else deadline - time.monotonic()
            if self._policy == "refuse" or (remaining is not None and remaining <= 0):
                raise self._full(timeout_s)
            self._changed.wait(remaining)
            self._refuse_if_ended()

    def _accept(self, frame: Frame, *, is_timed_by_caller: bool, arrived: float) -> None:
        if self._began is None:
            self._began = arrived
            self._is_timed_by_caller = is_timed_by_caller
            self._info = replace(self._info, size=(frame.image.shape[0], frame.image.shape[1]))
        self._last_time_s = frame.time_s
        self._report.num_decoded += 1
        if not self._sampler.wants(frame.time_s):
            self._report.num_skipped += 1
            return
        self._queue.append(frame)
        self._changed.notify_all()

    def _full(self, timeout_s: float | None) -> CapacityError:
        waited = f", waited {timeout_s} s" if timeout_s is not None else ""
        return CapacityError(
            "the queue is full",
            given=f"{self._capacity} frames{waited}",
            do="read faster, push at a lower rate, or policy='drop_oldest'",
        )


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s < math.inf:
        raise InputError(
            "timeout_s must be a number of seconds >= 0, or None", given=repr(timeout_s), do="timeout_s=5.0"
        )
