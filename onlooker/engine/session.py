"""One stream from frame to answer: the only place where per-stream state lives."""

import copy
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.events import Answer, Closed, Event, Failed, FrameTaken, SessionStats
from onlooker.core.frame import Frame
from onlooker.core.spans import Layout, Span
from onlooker.engine.asking import Asking
from onlooker.engine.sampling import Decoding
from onlooker.engine.watching import Watch
from onlooker.respond import Rule

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine

EVENTS_KEPT = 1024


@dataclass(frozen=True)
class Trace:
    """What happened to the tokens of one frame, for drawing it."""

    time_s: float
    recomputed: np.ndarray
    """Share of the tower's layers in which each patch was computed anew, float32 `[patch rows, patch cols]`."""
    kept: np.ndarray
    """Which tokens entered the language model, bool `[token rows, token cols]`."""
    refreshed: bool


class Session:
    """One stream on an engine. Made by `Engine.open`; use it with `with`, or close it.

    Frames go in with `push`, in the order of their times; `ask` answers from what was seen so far and leaves no mark on
    the stream. A session is used from one thread, the one that owns its engine.
    """

    def __init__(self, engine: "Engine", trace: bool = False) -> None:
        self._engine = engine
        self.model, self.memory = engine.model, engine.memory
        self.layout: Layout = engine.layout
        self.encoder_state = engine.encoder.new_state()
        self.compressor_state = engine.compressor.new_state()
        self.memory_state = engine.memory.new_state()
        self.store = engine.new_store()
        self.unread: dict[int, tuple[Span, Any]] = {}
        """Frames that are read at a question only: tokens, or pictures where the model takes no tokens."""
        self.seen: Any = None
        """The newest frame's tokens, between the eye and the memory (the engine's)."""
        self.traces = trace
        self.trace: Trace | None = None
        self.frames = 0
        self.time_s: float | None = None
        self.totals = SessionStats()
        self.closed = False
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)

    def push(self, frame: Frame) -> FrameTaken:
        """Take in the next frame.

        Raises `InputError` when its time does not lie after the last frame's, `CapacityError` when the memory budget
        is used up (the stream is then as it was before the frame), `SessionClosed` after `close`.
        """
        event = self._engine.step([(self, frame)])[0]
        if isinstance(event, Failed):
            raise event.error
        return event

    def ask(
        self,
        question: str,
        *,
        at: float | None = None,
        since: float | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer a question from what the stream has shown so far.

        `at` answers as of that stream time (nothing later is seen), `since` looks at nothing earlier; both in seconds.
        Asking changes nothing: the same question asked again gives the same answer. Raises `InputError` for an empty
        question, one asked before the first frame, or times outside the stream.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed)
        asking = self.put(question, at=at, since=since, decoding=decoding)
        while not asking.done:
            self._engine.step([], [asking])
        return asking.answer()

    def stream(self, question: str, **options) -> "AnswerStream":
        """As `ask`, but the answer comes piece by piece: iterate for text, then read `.answer`."""
        times = {name: options.pop(name, None) for name in ("at", "since")}
        return AnswerStream(self._engine, self.put(question, **times, decoding=Decoding(**options)))

    def put(
        self, question: str, *, at: float | None = None, since: float | None = None, decoding: Decoding | None = None
    ) -> Asking:
        """A question in flight, for callers who step the engine themselves and answer several at once."""
        self.check_open()
        if self.time_s is None:
            raise InputError("there is nothing to ask about yet", given="no frame was pushed", do="push a frame first")
        now = self.time_s if at is None else at
        start = 0.0 if since is None else since
        if not (np.isfinite(now) and np.isfinite(start)) or now < 0 or start > now:
            raise InputError(
                "a question looks at the stream from since to at",
                given=f"since={since}, at={at}, stream time {self.time_s:.2f} s",
                do="give 0 <= since <= at, in seconds",
            )
        return self._engine.put(self, question, min(now, self.time_s), (start, now), decoding or Decoding())

    def watch(self, rules: Sequence[Rule] = ()) -> Watch:
        """Rules over this stream, which look at every frame that is fed to them (see `Watch`)."""
        self.check_open()
        return Watch(self._engine, self, rules)

    def events(self) -> Iterator[Event]:
        """What happened since the last call, oldest first. At most 1,024 events wait; older ones are dropped, counted
        in `stats().dropped_events`."""
        while self._events:
            yield self._events.popleft()

    def stats(self) -> SessionStats:
        """Running totals, and the bytes held now."""
        held = dict(self.store.num_bytes())
        held["encoder_state"] = self.encoder_state.num_bytes()
        held["compressor_state"] = self.compressor_state.num_bytes()
        held["unread_frames"] = sum(frame.nbytes for _, frame in self.unread.values())
        return dataclasses.replace(self.totals, stage_s=dict(self.totals.stage_s), memory_bytes=held)

    def fork(self) -> "Session":
        """An independent session that has seen what this one has: what happens to one is not seen by the other."""
        self.check_open()
        twin = copy.copy(self)
        twin.encoder_state = self.encoder_state.fork()
        twin.compressor_state = self.compressor_state.fork()
        twin.memory_state = self.memory_state.fork()
        twin.store = self.store.fork()
        twin.unread = dict(self.unread)
        twin.totals = dataclasses.replace(self.totals, stage_s=dict(self.totals.stage_s))
        twin._events = deque(maxlen=EVENTS_KEPT)
        self._engine.sessions.add(twin)
        return twin

    def close(self) -> None:
        """End the session and free what it holds. Closing twice is fine."""
        if self.closed:
            return
        self.tell(Closed(self.time_s or 0.0, self.frames))
        self.closed = True
        self.unread.clear()
        self.seen = None
        self.encoder_state = self._engine.encoder.new_state()
        self.compressor_state = self._engine.compressor.new_state()
        # A store with nothing but the prefix takes the old one's place, so that its memory is free at once.
        self.store = self._engine.new_store()
        self._engine.sessions.discard(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------- what the engine calls

    def check_open(self) -> None:
        """Raise `SessionClosed` if this session has ended."""
        if self.closed:
            raise SessionClosed("the session was closed", do="open a new one with engine.open()")

    def check_next(self, frame: Frame) -> None:
        """Raise unless `frame` may follow what was pushed before."""
        self.check_open()
        if self.time_s is not None and frame.time_s <= self.time_s:
            raise InputError(
                "frames must come in the order of their times",
                given=f"{frame.time_s:.3f} s after {self.time_s:.3f} s",
                do="push each moment once, oldest first; open a new session for a new stream",
            )

    def tell(self, event: Event) -> None:
        """Note an event for `events()`."""
        if len(self._events) == EVENTS_KEPT:
            self.totals.dropped_events += 1
        self._events.append(event)

    def note_answer(self, answer: Answer) -> None:
        """Count an answer and note it for `events()`; what the stream remembers does not change."""
        self.totals.answers += 1
        self.tell(answer)

    def remember_unread(self, frame: Any, num_tokens: int, time_s: float) -> None:
        """Keep a frame's tokens (or its picture) for a policy that reads at the question."""
        number = next(self._unread_numbers)
        self.unread[number] = (Span(number, "vision", num_tokens, time_s, time_s), frame)

    @property
    def _unread_numbers(self) -> Iterator[int]:
        return itertools.count(max(self.unread, default=-1) + 1)


class AnswerStream:
    """An answer as it is written: iterate over pieces of text; `cancel()` stops it; `.answer` is the whole."""

    def __init__(self, engine: "Engine", asking: Asking) -> None:
        self._engine, self._asking = engine, asking

    def __iter__(self) -> Iterator[str]:
        while not self._asking.done:
            for piece in self._engine.step_asking([self._asking]):
                if piece:
                    yield piece

    def cancel(self) -> None:
        """Stop writing; what was written so far is the answer."""
        self._asking.cancel()

    @property
    def answer(self) -> Answer:
        """The whole answer; finishes it first if need be."""
        for _ in self:
            pass
        return self._asking.answer()


def as_trace(time_s: float, recomputed: torch.Tensor, kept: torch.Tensor, refreshed: bool) -> Trace:
    """A `Trace` from device tensors (waits for the device)."""
    return Trace(time_s, recomputed.float().cpu().numpy(), kept.cpu().numpy(), refreshed)
