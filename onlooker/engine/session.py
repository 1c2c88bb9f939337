"""One stream from frame to answer: the only place where per-stream state lives."""

import copy
import dataclasses
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onlooker.core.checks import number
from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.events import Answer, Closed, Event, Failed, FrameTaken, Noted, SessionStats
from onlooker.core.frame import Frame
from onlooker.core.spans import Layout, Plan, SaidPlace, Span, SpanKind
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread
from onlooker.engine.answer_stream import AnswerStream
from onlooker.engine.asking import ask_many
from onlooker.engine.emission import Emission, Pending
from onlooker.engine.files import write
from onlooker.engine.gating import Gated
from onlooker.engine.hearing import Heard, Usual
from onlooker.engine.methods import working_state
from onlooker.engine.notebook import NoteBook
from onlooker.engine.reading import Reading
from onlooker.engine.request import Request
from onlooker.engine.sampling import Decoding
from onlooker.engine.saving import Saved, save
from onlooker.engine.standing import RuleBook
from onlooker.engine.thinking import Thinking, hidden_notes
from onlooker.engine.trace import Trace
from onlooker.engine.watching import Watch
from onlooker.respond import Rule

if TYPE_CHECKING:
    from torch import Tensor

    from onlooker.engine.engine import Engine
    from onlooker.engine.narrating import Narration

EVENTS_KEPT = 1024
CARRIED = frozenset({"decision", "pooled"})
"""Signals that are made of the newest tokens."""


class Session:
    """One stream on an engine. Made by `Engine.open`; use it with `with`, or close it.

    Frames go in with `push`, in the order of their times; `ask` answers from what was seen so far and leaves no mark on
    the stream. A session is used from one thread, the one that owns its engine.
    """

    def __init__(self, engine: "Engine", trace: bool = False) -> None:
        self._engine = engine
        self.model, self.memory = engine.model, engine.memory
        self.layout: Layout = engine.layout
        self.refiner, self.thinker = engine.serving.refiner, engine.serving.thinker
        self.states = engine.new_states()
        """What each method remembers of this stream, by kind."""
        self.store = engine.new_store()
        self.arrival: Any = None
        """The newest frame between the eye and the memory (the engine's)."""
        self._working: dict[str, StreamState] | None = None
        """What they remember with the frame that is being worked on."""
        self._writes_in_place = True
        self.waiting: tuple[Frame, ...] = ()
        """The newest frames, which are no whole patch yet (see `VideoModel.patch_frames`)."""
        self.pending: tuple[Pending, ...] = ()
        """The newest patches that went through the tower and that the compressor still holds."""
        self.looked_ahead: Sequence[Reading] | None = None
        """What a question reads of `waiting` and `pending`, once somebody asked (the engine's)."""
        self.traces = trace
        self.trace: Trace | None = None
        self.frames = 0
        self.time_s: float | None = None
        self.seen_s: float | None = None
        """Time of the newest frame that the gate did not skip."""
        self.noted_s = 0.0  # time of the newest note
        self.wanted: Counter[str] = Counter(self.thinker.needs)
        """Signals of a frame that somebody listens to (`Watch`), and how many do."""
        self.heard = Heard()  # what the newest frame told them
        self.carriers: Tensor | None = None  # the newest patch's tokens as kept, if a decision is made of them
        self.usual = Usual()
        self.thinking: Thinking | None = None  # the thought that is on its way
        self.notebook = NoteBook()  # what was written into the memory
        self.rules = RuleBook()
        """What the rules of this stream remember, and what they said when."""
        self.totals, self.closed = SessionStats(), False
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

    def push_many(self, frames: Iterable[Frame], **options: Any) -> Generator[tuple[Frame, FrameTaken], None, None]:
        """Push the frames of a file, several in one pass: see `together.push_many` for what and for the options."""
        from onlooker.engine.together import push_many  # which needs this module

        return push_many(self, self._engine, frames, **options)

    def ask(
        self,
        question: str,
        *,
        at: float | None = None,
        since: float | None = None,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        place: SaidPlace = "behind",
    ) -> Answer:
        """Answer a question from what the stream has shown so far.

        `at` answers as of that stream time (nothing later is seen), `since` looks at nothing earlier; both in seconds,
        at most the newest frame's time. How the answer is decoded and is not said is as the checkpoint's generation
        settings have it (see `Decoding`). Asking changes nothing: asked again, greedily or with the same seed, the same
        question gives the same answer.
        Raises `InputError` for an empty question, one that is too long for the model, one asked before the first frame,
        times outside the stream, and times of which nothing is remembered.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, seed, top_k, repetition_penalty, place)
        request = self.submit(question, at=at, since=since, decoding=decoding)
        while not request.done:
            self._engine.step([], [request])
        return request.answer()

    def stream(self, question: str, **options) -> AnswerStream:
        """As `ask`, but the answer comes piece by piece: iterate for text, then read `.answer`."""
        times = {name: options.pop(name, None) for name in ("at", "since")}
        return AnswerStream(self._engine, self.submit(question, **times, decoding=Decoding(**options)))

    def ask_many(self, questions: Sequence[str], **options: Any) -> list[Answer]:
        """As `ask` of each, about one moment, in the same passes: see `asking.ask_many` for the options."""
        return list(ask_many(self, self._engine, questions, **options))

    def submit(
        self, question: str, *, at: float | None = None, since: float | None = None, decoding: Decoding | None = None
    ) -> Request:
        """A question in flight, for callers who step the engine themselves and answer several at once."""
        self.check_open()
        newest = self.now_s
        if self.time_s is None and not self.totals.notes:
            raise InputError("there is nothing to ask about yet", given="no frame was pushed", do="push a frame first")
        do = f"a question looks at the stream from since to at, in seconds: 0 <= since <= at <= {newest:.3f}"
        now = newest if at is None else number("at", at, least=0.0, most=newest, do=do)
        start = 0.0 if since is None else number("since", since, least=0.0, most=now, do=do)
        return self._engine.submit(self, question, now, (start, now), decoding or Decoding())

    def note(self, text: str, time_s: float | None = None, kind: SpanKind = "text") -> Span:
        """Write text into the memory, behind the newest frame: what was said, heard or thought.

        It is remembered, parked, found by recall, cited and forgotten like a frame. `time_s` is the stream time it
        belongs to, from the newest frame's on (default: that), and later frames must come later; `kind` is text,
        speech, caption or thought. A frame that waits for its pair is read alone then, as the note comes behind it.
        Returns the block. Raises `InputError` for a note without words or a time in the past, `CapacityError` when
        the memory budget is used up, `SessionClosed` after `close`.
        """
        return self._engine.note(self, text, time_s, kind)

    def prefix(
        self, name: str, embeddings: "Tensor | None" = None, time_s: float | None = None, kind: SpanKind = "text"
    ) -> Span:
        """Write a soft prefix as a note of that `name`: rows `[tokens, hidden_dim]`, or those that the model knows."""
        return self._engine.note(self, name, time_s, kind, self._engine.prefix_rows(name, embeddings))

    def notes(self, words: str = "", since_s: float = 0.0) -> list[Noted]:
        """The newest 4,096 notes, oldest first: those in which all `words` are, from a stream time on."""
        return self.notebook.find(words, since_s)

    @property
    def hears_codec(self) -> bool:
        """Whether a method looks at `Frame.codec` (`Engine.hears_codec`): whoever opens the video asks for it then."""
        return self._engine.hears_codec

    @property
    def now_s(self) -> float:
        """Stream time of the newest frame or note; 0.0 before the first."""
        return max(self.time_s or 0.0, self.noted_s)

    def watch(self, rules: Sequence[Rule] = ()) -> Watch:
        """Rules over this stream, which look at every frame that is fed to them (see `Watch`)."""
        self.check_open()
        return Watch(self._engine, self, rules)

    def narrate(self, *args: Any, **settings: Any) -> "Narration":
        """A commentary on this stream, which looks at every frame that is fed to it (see `Narration`)."""
        from onlooker.engine.narrating import Narration  # which needs this module

        self.check_open()
        return Narration(self._engine, self, *args, **settings)

    def events(self) -> Iterator[Event]:
        """What happened since the last call, oldest first. At most 1,024 events wait; older ones are dropped, counted
        in `stats().dropped_events`."""
        while self._events:
            yield self._events.popleft()

    def stats(self) -> SessionStats:
        """Running totals, and the bytes held now."""
        held = dict(self.store.num_bytes())
        held |= {f"{kind}_state": state.num_bytes() for kind, state in self.states.items()}
        held["frame_signals"] = self.usual.num_bytes()
        held["held_frames"] = sum(frame.image.nbytes for frame in self.waiting)
        return dataclasses.replace(self.totals, stage_s=dict(self.totals.stage_s), memory_bytes=held)

    def save(self, folder: str | Path) -> Path:
        """Put what this session remembers into a folder (`files.write`), from which `onlooker.load` goes on."""
        return write(self.export_unsealed(), folder)

    def export(self) -> Saved:
        """What this session remembers: tensors and facts of which `Engine.load` makes one that goes on the same."""
        return self.export_unsealed().sealed()

    def export_unsealed(self) -> Saved:
        """As `export`, without the checksum, which takes its time: a server makes it on another thread."""
        self.check_open()
        self.give_up()  # of a frame that was seen ahead nothing is saved
        return save(self, self._engine)

    def holders(self) -> dict[str, Any]:
        """What holds a part of its memory, by name."""
        return {"store": self.store, "signals": self.usual, "rules": self.rules, "notes": self.notebook, **self.states}

    def fork(self) -> "Session":
        """An independent session that has seen what this one has: what happens to one is not seen by the other."""
        self.check_open()
        self.give_up()
        twin = copy.copy(self)
        twin.arrival = twin._working = None
        twin.states = {kind: state.fork() for kind, state in self.states.items()}
        twin.store = self.store.fork()
        twin.usual, twin.rules, twin.wanted = self.usual.fork(), self.rules.fork(), Counter(self.thinker.needs)
        twin.notebook, twin.thinking = self.notebook.fork(), None
        twin.totals = dataclasses.replace(self.totals, stage_s=dict(self.totals.stage_s))
        twin._events = deque(maxlen=EVENTS_KEPT)
        self._engine.sessions.add(twin)
        return twin

    def close(self) -> None:
        """End the session and free what it holds. Closing twice is fine."""
        if self.closed:
            return
        self.tell(Closed(self.time_s or 0.0, self.frames))
        self.closed, self.trace, self.arrival, self._working = True, None, None, None
        self.waiting, self.pending, self.looked_ahead = (), (), None
        self.heard, self.usual, self.carriers = Heard(), Usual(), None
        self.states = self._engine.new_states()
        # A store with nothing but the prefix takes the old one's place, so that its memory is free at once.
        self.store = self._engine.new_store()
        self._engine.sessions.discard(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------- what the engine calls

    def belongs_to(self, engine: "Engine") -> bool:
        """Whether it was opened on this engine."""
        return self._engine is engine

    def check_open(self) -> None:
        """Raise `SessionClosed` if this session has ended."""
        if self.closed:
            raise SessionClosed("the session was closed", do="open a new one with engine.open()")

    def check_next(self, frame: Frame) -> None:
        """Raise unless `frame` may follow what was pushed and noted before."""
        self.check_open()
        if not isinstance(frame, Frame):
            raise InputError("a session takes frames", given=type(frame).__name__, do="push Frame(image, time_s)")
        frame.check_follows(self.time_s, self.noted_s)

    def begin(self, most_tokens: int) -> dict[str, StreamState]:
        """What the methods may write into for the next frame, of at most so many tokens, by kind: forks of their
        states; of a renewable kind the state itself, where a fork would cost much and there is room for the frame.
        An earlier frame that never came to be remembered is given up."""
        self.give_up()
        is_sure = self._writes_in_place and self.store.is_sure_of_room(most_tokens)
        self._working = {kind: working_state(kind, state, is_sure) for kind, state in self.states.items()}
        return self._working

    def forks(self) -> dict[str, StreamState]:
        """Copies of what the methods remember, for a look that the stream shall not know of."""
        return {kind: state.fork() for kind, state in self.states.items()}

    def give_up(self) -> None:
        """The frame that is being worked on is not remembered. A state that was written in place is dropped."""
        for kind, written in (self._working or {}).items():
            if self.states[kind] is written and vars(written):
                self.states[kind] = self._engine.new_states()[kind]
        self._working, self.arrival = None, None

    def keep_blocks(self, spans: Sequence[Span]) -> Plan:
        """Keep blocks that were stored just now, and of the others what the memory plans. An error leaves everything
        as it was before them."""
        assert self._working is not None, "no frame is being worked on"
        if not spans:
            return Plan()
        state = self._working["memory"]
        for span in spans if self.memory.indexes else ():
            self.memory.index(span.id, self.store.raw_keys(span.id), state)
        for span in spans if self.memory.num_queries else ():
            self.memory.heed(span.id, self.store.queries(span.id), state)
        plan = self.memory.plan(self.store.spans, state)
        self.store.apply(plan, lambda keys, values, sizes: self.memory.pick(keys, values, sizes, state))
        self.totals.tokens_read += sum(span.num_tokens for span in spans)
        return plan

    def held(self, question: str = "", notes: bool = True) -> Sequence[Reading]:
        """What has been seen and is not remembered yet, as a question reads it, and the notes that it looks for."""
        return [*self._engine.held(self), *(hidden_notes(self, question) if notes else ())]

    def absorb(self, new: Unread) -> Plan:
        """Hand a frame's tokens (or its picture, or a note) to a memory that holds them. An error leaves everything as
        it was before the frame."""
        assert self._working is not None, "no frame is being worked on"
        state = self._working["memory"]
        self.memory.absorb(new.owned(), state)
        if self.store.device_budget_bytes is not None:
            self.store.check_beside(state.num_bytes())
        return Plan()

    def given_out(self, given: Emission, now: float) -> None:
        """What was given out is remembered, and the rest is still held; count it."""
        self.totals.held_s += given.waited_s(self.pending, now)
        self.totals.frames_empty += given.frames_empty
        self.pending = given.pending
        self.carriers = given.parts[-1][1].features if CARRIED & self.wanted.keys() and given.parts else None

    def hold(self, waiting: tuple[Frame, ...], now: float) -> None:
        """These frames wait for the next one; those that have waited until now are remembered."""
        done = [frame for frame in self.waiting if all(frame is not other for other in waiting)]
        self.totals.held_s += sum(now - frame.time_s for frame in done)
        self.waiting, self.looked_ahead = waiting, None

    def settle(self) -> None:
        """What the methods remember with what was worked on takes effect; nothing if a frame only waits."""
        self.states = self.states if self._working is None else self._working
        self._working, self.arrival = None, None

    @property
    def next_number(self) -> int:
        """Number of the next patch's first frame among those that the gate let through."""
        return self.frames - self.totals.frames_skipped - len(self.waiting)

    def taken(self, event: FrameTaken, plan: Plan, met: Gated | None = None) -> FrameTaken:
        """A frame is remembered, or was skipped: what its methods know takes effect. Count it and tell of it."""
        self.settle()
        self.heard = Heard()
        if met is not None:
            self.states["gate"] = met.state
            self.totals.frames_shrunk += met.fate == "shrunk"
        if event.skipped:
            self.totals.frames_skipped += 1
            self.trace = self.trace and self.trace.of_skipped(event.time_s)
        else:
            self.seen_s = event.time_s
        self.frames, self.time_s, totals = self.frames + 1, event.time_s, self.totals
        totals.frames += 1
        totals.frames_held += event.held
        totals.refreshed_frames += event.refreshed
        totals.tokens_seen += event.tokens_seen
        totals.tokens_kept += event.tokens_kept
        totals.blocks_parked += len(plan.park)
        totals.blocks_forgotten += len(plan.forget)
        self.tell(event)
        return event

    def refused(self, time_s: float, error: Exception) -> Failed:
        """A frame could not be remembered: tell of it; nothing else has changed."""
        self.give_up()
        failed = Failed(time_s, error)
        self.tell(failed)
        return failed

    def tell(self, event: Event) -> None:
        """Note an event for `events()`; none after `Closed`, for instance of a question that was in flight."""
        if self.closed:
            return
        if len(self._events) == EVENTS_KEPT:
            self.totals.dropped_events += 1
        self._events.append(event)

    def note_answer(self, answer: Answer) -> None:
        """Count an answer and note it for `events()`; what the stream remembers does not change."""
        self.totals.answers += 1
        self.tell(answer)
