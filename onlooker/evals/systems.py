"""What the harness tests: something that watches frames in order and answers, and an engine as such a thing."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from onlooker.core.contracts import VideoModel
from onlooker.core.errors import InputError
from onlooker.core.events import Answer, Failed
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord
from onlooker.encode import tower_flop
from onlooker.engine import Decoding, Engine, Session
from onlooker.evals.item import Item
from onlooker.evals.oracle import feed


@dataclass(frozen=True)
class AskedQuestion:
    """What a system is asked: the words, the time, and the earliest time it may use. `query` is for controls only."""

    text: str
    time_s: float
    since_s: float
    query: QueryRecord


@dataclass(frozen=True)
class Said:
    """What a system said, and what that took."""

    text: str
    latency: dict[str, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    latest_used_s: float | None = None
    """The latest time the answer rests on, where the system knows it. After the question it is a proof of cheating."""


class Watcher(ABC):
    """One stream of a system."""

    @abstractmethod
    def watch(self, frame: Frame) -> None:
        """Take in the next frame. What it raises ends this video."""

    @abstractmethod
    def answer(self, question: AskedQuestion) -> Said:
        """Answer from what was seen so far. What it raises fails this question only."""

    def stats(self) -> dict[str, Any]:
        """Running totals of this stream, as far as there are any."""
        return {}

    def close(self) -> None:  # noqa: B027 - most controls hold nothing
        """Free what the stream holds."""


class System(ABC):
    """Something that can watch many videos. Controls fill in `open` alone; the rest has a plain default.

    The two batch methods return an exception in the place of a result, so that one stream's trouble stays its own.
    """

    @abstractmethod
    def open(self, item: Item) -> Watcher:
        """A new stream. An honest system does not look at the item's frames or questions here."""

    def watch_all(self, arrivals: Sequence[tuple[Watcher, Frame]]) -> list[Exception | None]:
        """One frame of each of several streams."""
        return [_caught(watcher.watch, frame) for watcher, frame in arrivals]

    def answer_all(self, asked: Sequence[tuple[Watcher, AskedQuestion]]) -> list[Said | Exception]:
        """Several questions, of one or of several streams, each answered as if it were alone."""
        return [_caught(watcher.answer, question) for watcher, question in asked]


class EngineSystem(System):
    """An engine and its sessions: all streams share each step, all questions share each pass."""

    def __init__(
        self, engine: Engine, max_new_tokens: int = 12, prefixes: Sequence[str] = (), side: Sequence[str] = ()
    ) -> None:
        """`prefixes`: names of soft prefixes that each stream begins with; `side`: kinds of the text beside a video
        (`VideoRecord.side`) that go into memory, each line as a note when its time has come."""
        self.engine, self.decoding = engine, Decoding(max_new_tokens, temperature=0.0)
        self._prefixes, self._side = prefixes, side
        self._flop: dict[tuple[int, ...], float] = {}

    def open(self, item: Item) -> Watcher:
        session = self.engine.open()
        for name in self._prefixes:
            session.prefix(name)
        feed(session.states["compressor"], item)
        lines = [line for line in item.video.side if line["kind"] in self._side]
        return EngineWatcher(self, session, deque(sorted(lines, key=lambda line: line["t0"])))

    def watch_all(self, arrivals: Sequence[tuple[Watcher, Frame]]) -> list[Exception | None]:
        try:
            for watcher, frame in arrivals:
                cast(EngineWatcher, watcher).hear(frame.time_s)
                cast(EngineWatcher, watcher).picture = frame.image.shape
            events = self.engine.step([(_session(watcher), frame) for watcher, frame in arrivals])
        except Exception as error:
            if len(arrivals) == 1:
                return [error]
            # Whose fault it was is found by going one by one; a step that raises has changed nothing.
            return [outcome for arrival in arrivals for outcome in self.watch_all([arrival])]
        return [event.error if isinstance(event, Failed) else None for event in events]

    def vision_flop(self, picture: tuple[int, ...] | None) -> float:
        """FLOP of the vision tower for one such picture, mean over those encoded whole and sparingly: counted."""
        if picture is None or not isinstance(self.engine.model, VideoModel):
            return 0.0
        if picture not in self._flop:
            (pixels,) = self.engine.model.preprocess([np.zeros(picture, np.uint8)])
            tower = self.engine.model.tower(tuple(pixels.shape))
            self._flop[picture] = self.engine.serving.encoder.cost(tower) * tower_flop(tower)
        return self._flop[picture]

    def answer_all(self, asked: Sequence[tuple[Watcher, AskedQuestion]]) -> list[Said | Exception]:
        try:
            return list(self._answer_together(asked))
        except Exception as error:
            if len(asked) == 1:
                return [error]
            return [said for one in asked for said in self.answer_all([one])]

    def _answer_together(self, asked: Sequence[tuple[Watcher, AskedQuestion]]) -> list[Said]:
        flying = []
        for watcher, question in asked:
            cast(EngineWatcher, watcher).hear(question.time_s + 1e-6)
            session = _session(watcher)
            if session.time_s is None or question.since_s > session.time_s:
                raise InputError("asked before the first frame", given=f"{question.time_s:.1f} s")
            flying.append(session.submit(question.text, since=question.since_s, decoding=self.decoding))
        while active := [request for request in flying if not request.done]:
            self.engine.step_requests(active)
        return [self._said(_session(w), request.answer()) for (w, _), request in zip(asked, flying, strict=True)]

    def _said(self, session: Session, answer: Answer) -> Said:
        reread = answer.usage.context_tokens if self.engine.memory.holds_tokens else 0
        session.totals.tokens_read += reread
        totals = session.totals
        meta = {
            "tokens_seen": totals.tokens_seen,
            "tokens_kept": totals.tokens_kept,
            "tokens_read": totals.tokens_read,
            "context_tokens": answer.usage.context_tokens,
            "new_tokens": answer.usage.new_tokens,
            "frames": totals.frames,
            "cited": [[round(c.start_s, 3), round(c.end_s, 3), round(c.share, 4)] for c in answer.citations],
        }
        latency = {"first": answer.timing.first_token_s, "total": answer.timing.total_s}
        return Said(answer.text, latency, meta, max((c.end_s for c in answer.citations), default=None))


class EngineWatcher(Watcher):
    """A session."""

    def __init__(self, system: EngineSystem, session: Session, side: deque[dict[str, Any]]) -> None:
        self.system, self.session = system, session
        self.side = side
        """Lines of side text that are still to come."""
        self.picture: tuple[int, ...] | None = None
        """Rows, columns and channels of the pictures, once there was one."""

    def hear(self, before_s: float) -> None:
        """Write the lines that began before this time, and behind the first frame, into memory."""
        while self.side and self.picture is not None and self.side[0]["t0"] < before_s:
            line = self.side.popleft()
            kind = "text" if line["kind"] == "comment" else "speech"
            self.session.note(line["text"], max(line["t0"], self.session.now_s), kind)

    def watch(self, frame: Frame) -> None:
        self.hear(frame.time_s)
        self.session.push(frame)

    def answer(self, question: AskedQuestion) -> Said:
        (said,) = self.system.answer_all([(self, question)])
        if isinstance(said, Exception):
            raise said
        return said

    def stats(self) -> dict[str, Any]:
        stats = self.session.stats()
        return {
            "frames": stats.frames,
            "tokens_seen": stats.tokens_seen,
            "tokens_kept": stats.tokens_kept,
            "tokens_read": stats.tokens_read,
            "frames_skipped": stats.frames_skipped,
            "refreshed_frames": stats.refreshed_frames,
            "stage_s": dict(stats.stage_s),
            "memory_bytes": sum(stats.memory_bytes.values()),
            "vision_flop": (stats.frames - stats.frames_skipped) * self.system.vision_flop(self.picture),
        }

    def close(self) -> None:
        self.session.close()


def as_system(thing: Engine | System, max_new_tokens: int = 12) -> System:
    """An engine as a system; a system as it is."""
    return thing if isinstance(thing, System) else EngineSystem(thing, max_new_tokens)


def _session(watcher: Watcher) -> Session:
    assert isinstance(watcher, EngineWatcher), f"{type(watcher).__name__} is of another system"
    return watcher.session


def _caught(do: Any, argument: Any) -> Any:
    try:
        return do(argument)
    except Exception as error:
        return error
