"""Many live streams on one engine: whose frame is next, who waits, who is refused, and what gives when it is too much.

    scheduler = Scheduler(engine)
    lane = scheduler.open(fps=1.0)         # raises Busy (reason, retry_s) when there is no room
    lane.offer(frame)                      # any thread; a newer frame replaces one that still waits
    asking = scheduler.ask(lane, "...")    # raises Busy when the answer would come too late
    while serving:                         # the thread that owns the engine
        report = scheduler.step()          # one pass for all: events, new text
        if report.idle:
            scheduler.wait(0.1)

A frame is due `frame_lag_s` after it was offered, a question's first token `first_token_s` after it was put. Questions
take part in every step; frames go oldest first, as many as leave a step short enough for a question that may come. A
stream holds one waiting frame: when a newer one comes, the older is dropped and counted. When the work offered exceeds
what steps can do, all streams descend a ladder together (fewer frames, fewer tokens a frame, rarer refreshes), and
climb again when there is room: `stats().rung` says where they are.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from onlooker.core.errors import InputError
from onlooker.core.events import Failed, FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine.asking import Asking
from onlooker.engine.engine import Engine
from onlooker.engine.lane import Lane, LaneCounts
from onlooker.engine.load import Recent, Share, StepCost
from onlooker.engine.promises import Busy, Promises, Rung, default_ladder
from onlooker.engine.sampling import Decoding
from onlooker.engine.session import Session

LEARNING_STEPS = 8
"""Steps before costs are believed."""


@dataclass(frozen=True)
class Report:
    """What one step did."""

    events: tuple[tuple[Lane, FrameTaken | Failed], ...] = ()
    texts: tuple[tuple[Asking, str], ...] = ()
    """New text of every question in flight; finished ones have `.answer()`."""
    seconds: float = 0.0
    lags_s: tuple[float, ...] = ()
    """Of the frames taken: from being offered to being in memory."""

    @property
    def idle(self) -> bool:
        """True when there was nothing to do."""
        return not self.events and not self.texts


@dataclass(frozen=True)
class SchedulerStats:
    """Where a scheduler stands."""

    streams: int
    waiting: int
    """Frames offered and not taken yet."""
    questions: int
    """In flight."""
    rung: str
    level: int
    """Place of the rung, 0 for everything."""
    load: float
    """Share of the engine's time that the streams ask for, at this rung."""
    base_s: float
    frame_s: float
    question_s: float
    lag_p50_s: float | None
    lag_p95_s: float | None
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    frames: LaneCounts
    refused: int
    """Streams and questions that met `Busy`."""


class Scheduler:
    """See the head of this file. `offer` and `wait` may be called from any thread, all else from the engine's."""

    def __init__(
        self,
        engine: Engine,
        promises: Promises | None = None,
        *,
        ladder: Sequence[Rung] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ladder` goes from everything to least (default: `default_ladder`); `now` is the clock, in seconds."""
        self.engine, self.promises, self.now = engine, promises or Promises(), now
        self.ladder = tuple(ladder) if ladder is not None else default_ladder(engine)
        if not self.ladder:
            raise InputError("a ladder has at least one rung", given="none", do="Rung('everything')")
        workers = self.promises.workers
        self.resizer = ThreadPoolExecutor(workers, "onlooker-resize") if workers else None
        self.cost = StepCost()
        self.level = 0
        self._methods = engine.encoder, engine.compressor
        self._lanes: list[Lane] = []
        self._askings: list[tuple[Asking, float]] = []
        self._gone = LaneCounts()
        self._refused = 0
        self._lags, self._first_tokens, self._questions = Recent(), Recent(), Share()
        self._changed = threading.Condition()
        self._since: float | None = None
        """Since when there has been too much to do (or, on a lower rung, room)."""

    # ------------------------------------------------------------------------------------------------- coming, going

    def open(self, fps: float = 1.0) -> Lane:
        """A new stream of at most so many frames a second. Raises `Busy` when the promises to others would break."""
        if not 0 < fps < 1000:
            raise InputError("a stream needs a frame rate", given=f"fps={fps}", do="a number above 0")
        self._admit(fps)
        return self.adopt(self.engine.open(), fps)

    def adopt(self, session: Session, fps: float = 1.0) -> Lane:
        """A lane for a session that is open already, without asking whether there is room."""
        lane = Lane(self, session, fps)
        self._lanes.append(lane)
        return lane

    def remove(self, lane: Lane) -> None:
        """Close a lane and its session. Closing twice is fine."""
        if lane not in self._lanes:
            return
        self._lanes.remove(lane)
        for asking, _ in self._askings:
            if asking.session is lane.session:
                asking.cancel()
        self._askings = [(asking, put_s) for asking, put_s in self._askings if not asking.done]
        lane.counts.dropped += lane.take() is not None
        _add(self._gone, lane.counts)
        lane.session.close()

    def close(self) -> None:
        """Close every lane and end the threads; the engine has its own methods again."""
        for lane in list(self._lanes):
            lane.close()
        if self.resizer is not None:
            self.resizer.shutdown(wait=True, cancel_futures=True)
        self.engine.use(*self._methods)

    def ask(
        self, lane: Lane, question: str, *, put_s: float | None = None, decoding: Decoding | None = None, **when: Any
    ) -> Asking:
        """Put a question to a lane's session; steps move it on until `asking.done`. `when` is `at` and `since`.

        Raises `Busy` when so many questions are in flight that its first token would come too late, and what
        `Session.put` raises. `put_s` is when it was asked, on the scheduler's clock (default: now).
        """
        expected = self.cost.expected_s(self._frames_in_a_step(), 1)
        full = len(self._askings) >= self.promises.most_questions
        late = self.cost.steps >= LEARNING_STEPS and expected > self.promises.first_token_s
        if full or late:
            self._refused += 1
            reason = f"{len(self._askings)} in flight" if full else f"a step takes {expected:.2f} s"
            raise Busy("the question would be answered too late", given=reason, retry_s=max(1.0, expected))
        asking = lane.session.put(question, decoding=decoding, **when)
        self._askings.append((asking, self.now() if put_s is None else put_s))
        self.wake()
        return asking

    # ------------------------------------------------------------------------------------------------------ working

    def step(self) -> Report:
        """Take in the oldest waiting frames and move all questions on, in one pass; ends when the device is done."""
        self._settle()
        chosen = self._choose()
        askings = [(asking, put_s) for asking, put_s in self._askings if not asking.done]
        if not chosen and not askings:
            return Report()
        silent = [asking for asking, _ in askings if not asking.has_spoken]
        began, began_s = time.perf_counter(), self.now()
        arrivals = [(lane.session, frame) for lane, frame, _ in chosen]
        events, texts = self.engine.advance(arrivals, [asking for asking, _ in askings])
        self.engine.wait()
        spent = time.perf_counter() - began
        now = max(self.now(), began_s + spent)
        self.cost.note(len(chosen), len(askings), spent)
        if askings:
            alone = self.cost.question_s if chosen else spent
            self._questions.note(min(alone, spent), now)
        lags = tuple(now - arrived for _, _, arrived in chosen)
        for (lane, _, _), event, lag in zip(chosen, events, lags, strict=True):
            counts, failed = lane.counts, isinstance(event, Failed)
            counts.failed += failed
            counts.taken += not failed
            counts.late += lag > self.promises.frame_lag_s
            self._lags.note(lag)
        for asking, put_s in askings:
            if asking in silent and asking.has_spoken:
                self._first_tokens.note(now - put_s)
        self._askings = [(asking, put_s) for asking, put_s in self._askings if not asking.done]
        told = tuple((lane, event) for (lane, _, _), event in zip(chosen, events, strict=True))
        return Report(told, tuple(zip([asking for asking, _ in askings], texts, strict=True)), spent, lags)

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to do, at most so long; whether there is."""
        with self._changed:
            return self._changed.wait_for(self._has_work, timeout_s)

    def wake(self) -> None:
        """End a `wait`, from any thread."""
        with self._changed:
            self._changed.notify_all()

    @property
    def in_flight(self) -> Sequence[tuple[Asking, float]]:
        """Questions that are not answered yet, and when they were put."""
        return self._askings

    @property
    def rung(self) -> Rung:
        """What is done now."""
        return self.ladder[self.level]

    def stats(self) -> SchedulerStats:
        """Where things stand."""
        frames = dataclasses.replace(self._gone)
        for lane in self._lanes:
            _add(frames, lane.counts)
        return SchedulerStats(
            streams=len(self._lanes),
            waiting=sum(lane.is_waiting for lane in self._lanes),
            questions=len(self._askings),
            rung=self.rung.name,
            level=self.level,
            load=self._load(),
            base_s=self.cost.base_s,
            frame_s=self.cost.frame_s,
            question_s=self.cost.question_s,
            lag_p50_s=self._lags.percentile(50),
            lag_p95_s=self._lags.percentile(95),
            first_token_p50_s=self._first_tokens.percentile(50),
            first_token_p95_s=self._first_tokens.percentile(95),
            frames=frames,
            refused=self._refused,
        )

    # -------------------------------------------------------------------------------------------------------- inside

    def _has_work(self) -> bool:
        return bool(self._askings) or any(lane.waiting_since() is not None for lane in self._lanes)

    def _frames_in_a_step(self) -> int:
        """So many that a question which comes right after a step's start has its first token after the next one."""
        most = self.promises.most_frames
        if self.cost.steps < LEARNING_STEPS:
            return most
        return self.cost.frames_within(self.promises.first_token_s / 2, len(self._askings), most)

    def _choose(self) -> list[tuple[Lane, Frame, float]]:
        """The frames that have waited longest; all promise the same lag, so they are due in this order."""
        since = [(arrived, n) for n, lane in enumerate(self._lanes) if (arrived := lane.waiting_since()) is not None]
        chosen = []
        for _, number in sorted(since)[: self._frames_in_a_step()]:
            lane = self._lanes[number]
            if (taken := lane.take()) is not None:
                chosen.append((lane, *taken))
        return chosen

    def _load(self, more_fps: float = 0.0) -> float:
        """Share of the engine's time that streams and questions ask for, when steps are full."""
        rate = (sum(lane.fps for lane in self._lanes) + more_fps) * self.rung.fps_share
        full = self._frames_in_a_step()
        return rate * (self.cost.base_s / full + self.cost.frame_s) + self._questions.at(self.now())

    def _admit(self, fps: float) -> None:
        promises, lanes = self.promises, len(self._lanes)
        load = self._load(fps) if self.cost.steps >= LEARNING_STEPS else 0.0
        reason = None
        if self.level:
            reason = f"the streams that are there have to do with less ({self.rung.name})"
        elif load > promises.most_load:
            reason = f"{load:.0%} of the time would be promised, {promises.most_load:.0%} may be"
        elif promises.device_budget_bytes is not None and lanes:
            held = [_device_bytes(lane.session) for lane in self._lanes]
            if sum(held) + max(held) > promises.device_budget_bytes:
                reason = f"{sum(held)} bytes are held, {promises.device_budget_bytes} allowed"
        if reason is not None:
            self._refused += 1
            raise Busy(f"no room for another stream beside {lanes}", given=reason, retry_s=promises.recover_s)

    def _settle(self) -> None:
        """Descend or climb the ladder when overload, or room, has lasted."""
        if self.cost.steps < LEARNING_STEPS:
            return
        now, load, promises = self.now(), self._load(), self.promises
        lower, higher = self.level + 1 < len(self.ladder), self.level > 0
        # Half, because the rung above may ask for twice the work.
        wanted = +1 if load > 1.0 and lower else -1 if load < 0.5 * promises.most_load and higher else 0
        if not wanted:
            self._since = None
            return
        if self._since is None:
            self._since = now
        if now - self._since >= (promises.patience_s if wanted > 0 else promises.recover_s):
            self._since = None
            self.level += wanted
            encoder, compressor = self._methods
            self.engine.use(self.rung.encoder or encoder, self.rung.compressor or compressor)


def _device_bytes(session: Session) -> int:
    held = session.stats().memory_bytes
    return sum(size for name, size in held.items() if not name.startswith("host"))


def _add(total: LaneCounts, counts: LaneCounts) -> None:
    for field in dataclasses.fields(LaneCounts):
        setattr(total, field.name, getattr(total, field.name) + getattr(counts, field.name))
