"""Several frames of one stream in one prefill, for whoever has the frames before the questions: a file."""

import copy
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from onlooker.core.checks import whole
from onlooker.core.contracts import VideoModel
from onlooker.core.errors import CapacityError
from onlooker.core.events import Failed, FrameTaken, SessionStats
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.engine.computing import computing
from onlooker.engine.emission import Writer, read_all
from onlooker.engine.hearing import listen, to_hear
from onlooker.engine.packing import Work
from onlooker.engine.reading import Reading, joined
from onlooker.engine.request import release
from onlooker.kvstore import Foreseen, Together, may_read_together

if TYPE_CHECKING:
    import torch

    from onlooker.engine.engine import Engine
    from onlooker.engine.seeing import Arrival
    from onlooker.engine.session import Session

TOGETHER = 16
"""Frames of a group, as published for QuickPrefill."""
MOST_TOKENS = 4096
"""Tokens of a group, at most."""
LEFT_ALONE = frozenset({"memory", "gate", "think", "refiner"})
"""Kinds of methods whose states do not change when a frame is looked at."""


def push_many(
    session: "Session", engine: "Engine", frames: Iterable[Frame], together: int = TOGETHER
) -> Generator[tuple[Frame, FrameTaken], None, None]:
    """Push frames, up to so many of which are read in one pass; every frame, and what became of it, in order.

    "QuickVideo" (arXiv 2505.16175) prefills the frames of a file in groups. Here the result is that of `Session.push`
    of each, but for rounding: a token sees what is before it, in its frame and in those before, and the frames of a
    group are remembered one after the other. So a group ends where the memory would park, forget or melt something,
    which it is asked ahead. At each frame the session is as after that frame: it may be asked, watched, forked and
    saved, and what is written into it is read behind that frame. At most `together` frames are looked at before they
    are remembered.

    One by one are read (`frames_together` in the totals counts the others): frames of a session whose memory looks at
    the keys or queries of each block, holds tokens, or has a device budget or codes to lie in; those whose gate heeds
    the memory; and those between which the memory evicts. Raises `InputError` for less than one frame at a time, what
    `Session.push` raises, and what the iterator does, after the frames that came before it.
    """
    if whole("together", together, least=1) == 1 or not may_group(session, engine):
        for frame in frames:
            yield frame, session.push(frame)
        return
    group = _Groups(session, engine, together)
    try:
        yield from group.take(iter(frames))
    finally:
        group.give_up()


def may_group(session: "Session", engine: "Engine") -> bool:
    """Whether frames of a session can be read together at all, whatever its memory decides about them."""
    if engine.serves is not VideoModel:
        return False
    memory = session.memory
    looks = memory.holds_tokens or memory.indexes or memory.num_queries > 0
    return not looks and not engine.serving.gate.heeds_memory and may_read_together(session.store)


@dataclass(eq=False)
class _Looked:
    """A frame that was looked at and is not in the memory yet."""

    frame: Frame
    arrival: "Arrival"
    readings: Sequence[Reading]
    states: Mapping[str, StreamState]
    """Of the methods that have looked at it."""
    counted: SessionStats
    """What looking at it cost."""


class _Scout:
    """Looks at the frames of a session before those ahead of them are in its memory."""

    def __init__(self, session: "Session") -> None:
        self.double = double = copy.copy(session)
        double.arrival, double._working, double._writes_in_place = None, None, False
        double.states, double.totals = session.forks(), SessionStats(frames_skipped=session.totals.frames_skipped)

    def look(self, frame: Frame, engine: "Engine") -> _Looked:
        """What comes of a frame, with the double a frame further."""
        double = self.double
        engine.check_arrivals([(double, frame)])
        (arrival,) = engine.eye.see([(double, frame)])
        double.settle()
        counted, skipped = double.totals, double.totals.frames_skipped
        if arrival.gated is not None:
            double.states["gate"] = arrival.gated.state
        if arrival.is_skipped:
            skipped += 1
        else:
            double.seen_s = frame.time_s
        if arrival.patch is not None or not arrival.is_skipped:
            double.waiting = arrival.waiting
        if arrival.seen is not None:
            double.pending = arrival.seen.emission.pending
        double.frames, double.time_s = double.frames + 1, frame.time_s
        double.totals = SessionStats(frames_skipped=skipped)
        return _Looked(frame, arrival, engine.to_read(arrival), dict(double.states), counted)

    def hand_over(self, session: "Session", looked: _Looked) -> None:
        """The session is about to remember a frame as the double saw it."""
        session.give_up()
        if looked.arrival.seen is not None:
            left = {kind: session.states[kind].fork() for kind in LEFT_ALONE & session.states.keys()}
            session._working = dict(looked.states) | left
        totals, counted = session.totals, looked.counted
        totals.frames_unprepared += counted.frames_unprepared
        totals.frames_unsaid += counted.frames_unsaid
        for stage, seconds in counted.stage_s.items():
            totals.stage_s[stage] = totals.stage_s.get(stage, 0.0) + seconds


class _GroupWriter(Writer):
    """The blocks of one frame that was read with others (see `Writer`)."""

    def __init__(self, session: "Session", group: Together, count: int, end: Tensor | None) -> None:
        super().__init__(session, ())
        self._group = group
        try:
            for _ in range(count):
                self.spans.append(group.seal())
        except CapacityError as full:
            self.undo()
            self.error = release(full)
        self.end = end

    def undo(self) -> None:
        self._group.abort()
        super().undo()


class _Groups:
    """The frames of one session on their way into its memory."""

    def __init__(self, session: "Session", engine: "Engine", together: int) -> None:
        self._session, self._engine, self._together = session, engine, together
        self._looked: deque[_Looked] = deque()
        self._group: Together | None = None
        self._ends: list[Tensor | None] = []
        self._start_anew()

    @property
    def device(self) -> "torch.device":
        """Where it computes."""
        return self._engine.device

    def take(self, frames: Iterator[Frame]) -> Iterator[tuple[Frame, FrameTaken]]:
        """All frames, in order (see `push_many`)."""
        ended: Exception | None = None
        while True:
            self._go_on()
            while ended is None and len(self._looked) < self._together:
                try:
                    self._look(next(frames))
                except Exception as error:  # the end, or what went wrong: first come those that are on their way
                    ended = error
            if not self._looked:
                break
            yield from self._read()
        if not isinstance(ended, StopIteration):
            assert ended is not None, "it has ended"
            raise ended

    def give_up(self) -> None:
        """What was read and not remembered is dropped."""
        if self._group is not None:
            self._group.abort()
        self._group = None

    def _start_anew(self) -> None:
        self._scout = _Scout(self._session)
        self._known = self._fingerprint()

    def _fingerprint(self) -> tuple[int, int]:
        return self._session.frames, self._session.totals.notes

    def _go_on(self) -> None:
        """Look at frames again if something else came before them."""
        self._session.check_open()
        if self._fingerprint() == self._known:
            return
        self.give_up()
        again, self._looked = self._looked, deque()
        self._start_anew()
        for looked in again:
            self._look(looked.frame)

    @computing
    def _look(self, frame: Frame) -> None:
        self._looked.append(self._scout.look(frame, self._engine))

    def _read(self) -> Iterator[tuple[Frame, FrameTaken]]:
        """Read the next frames, and remember them one by one, as long as nothing comes between."""
        self._read_ahead(self._num_fitting())
        for number in range(max(1, len(self._ends))):
            self._session.check_open()
            if number and (self._fingerprint() != self._known or self._group is None or not self._group.is_open):
                break
            looked = self._looked.popleft()
            taken = self._remember(looked, self._ends[number] if self._group else None)
            self._known = self._fingerprint()
            self._engine.think([(self._session, taken)])
            yield looked.frame, taken
        self.give_up()

    def _num_fitting(self) -> int:
        """How many frames can be read in one pass: up to and with the first after which the memory would evict."""
        memory, state = self._session.memory, self._session.states["memory"].fork()
        foreseen, tokens = Foreseen(self._session.store), 0
        for number, looked in enumerate(self._looked):
            tokens += sum(len(reading.embeddings) for reading in looked.readings)
            if number and tokens > MOST_TOKENS:
                return number
            if looked.arrival.error is not None:
                return number + 1
            if not looked.readings:
                continue
            try:
                plan = memory.plan(foreseen.spans_with([reading.held for reading in looked.readings]), state)
            except Exception as error:  # its own turn meets it again
                release(error)
                return number + 1
            if plan.park or plan.forget or plan.melt:
                return number + 1
        return len(self._looked)

    @computing
    def _read_ahead(self, count: int) -> None:
        """Read the next frames into a group, if that is more than one."""
        self._ends = []
        some = [self._looked[number] for number in range(count)]
        readings = [reading for looked in some for reading in looked.readings]
        if sum(bool(looked.readings) for looked in some) < 2:
            return
        try:
            group = Together(self._session.store, [reading.held for reading in readings])
        except CapacityError as full:  # there may be room for one by one
            release(full)
            return
        embeddings, extras = joined(readings)
        work = to_hear(self._session, Work(embeddings, group.chunk, extras))
        places, at = [], 0
        for looked in some:
            at += sum(len(reading.embeddings) for reading in looked.readings)
            places.append(at - 1)
        ends = sorted({place for place, looked in zip(places, some, strict=True) if looked.readings})
        try:
            with self._engine.stages("prefill", [self._session], self._engine.device):
                (told,) = self._engine.passes.run([work.ending_at(ends)])
        except BaseException:
            group.abort()
            raise
        heard = {} if told is None else dict(zip(ends, told, strict=True))
        self._group = group
        self._ends = [heard.get(place) if looked.readings else None for place, looked in zip(places, some, strict=True)]

    @computing
    def _remember(self, looked: _Looked, end: Tensor | None) -> FrameTaken:
        session, engine = self._session, self._engine
        self._scout.hand_over(session, looked)
        if self._group is None:
            writer = Writer(session, looked.readings)
            with engine.stages("prefill", [session], engine.device):
                read_all(engine.passes.run, [writer], [])
        else:
            writer = _GroupWriter(session, self._group, len(looked.readings), end)
            session.totals.frames_together += bool(looked.readings)
        with engine.stages("memory", [session], engine.device):
            event = engine.remember(looked.arrival, writer)
        if isinstance(event, Failed):
            raise event.error
        listen(session.model, [(session, writer.end)])
        return event
