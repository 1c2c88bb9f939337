"""The one thread that owns the device: takes waiting frames and questions, steps the engine, hands results back."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from onlooker.core.errors import OnlookerError
from onlooker.core.events import Alert, Answer, Failed
from onlooker.core.frame import Frame
from onlooker.engine import Decoding, Engine
from onlooker.engine.asking import Asking
from onlooker.server.feed import Feed
from onlooker.server.refusals import Refusal, gone
from onlooker.server.stream import Arrived, Event, Stream, Taken
from onlooker.server.turns import Turns
from onlooker.server.wire import alert_facts, answer_facts

Result = TypeVar("Result")

LOG = logging.getLogger("onlooker.server")
STALLED_S = 120.0
"""A step that takes longer than this means that the device hangs."""
STATS_EVERY_S = 1.0


@dataclass
class Question:
    """A question on its way: what is asked, and the feed its answer comes through.

    The feed's items are `str` (pieces of text), then one `Answer` or one `Exception`; then it is closed.
    """

    stream: Stream
    text: str
    decoding: Decoding
    at_s: float | None = None
    since_s: float | None = None
    put_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    asking: Asking | None = None

    def __post_init__(self) -> None:
        # Room for every piece: nothing of an answer is ever dropped.
        self.pieces: Feed[str | Answer | Exception] = Feed(self.decoding.max_new_tokens + 8)

    def pending(self) -> Any:
        """What has to be read next; the engine steps a question as it steps an `Asking`."""
        assert self.asking is not None
        return self.asking.pending()

    def accept(self, scores: Any) -> str:
        """Take the scores of a step, and hand the new text on."""
        assert self.asking is not None
        text = self.asking.accept(scores)
        if text:
            self.pieces.add(text)
        return text

    def cancel(self) -> None:
        """Nobody waits for this any more. The worker stops it before its next step."""
        self.cancelled = True

    def end(self, last: Answer | Exception) -> None:
        """Hand over what ends it."""
        self.pieces.add(last)
        self.pieces.close()


class Observer:
    """What a worker tells of its work, on its own thread; here nobody listens."""

    def stepped(self, num_frames: int, num_questions: int, seconds: float) -> None:
        """A step was made."""

    def took(self, taken: Taken) -> None:
        """A frame came into memory."""

    def answered(self, question: Question, answer: Answer) -> None:
        """A question was answered."""

    def alerted(self, alert: Alert) -> None:
        """A rule spoke."""

    def failed(self, what: str) -> None:
        """A frame, a question, a session or the engine failed."""


class Worker:
    """Runs an engine on a thread of its own. Every method may be called from any thread.

    `make_engine` is called on that thread, at the start and again after a failure that the engine did not survive:
    then every session is told that it is lost, and the server goes on with new ones. `on_alert` is told every alert and
    the id of its session, on the worker's thread.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        observer: Observer | None = None,
        turns: Turns | None = None,
        on_alert: Callable[[Alert, str], None] | None = None,
    ) -> None:
        self._make_engine = make_engine
        self._observer, self._turns = observer or Observer(), turns or Turns()
        self._on_alert = on_alert
        self._engine: Engine | None = None
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._streams: dict[str, Stream] = {}
        self._questions: list[Question] = []
        self._probes: list[Any] = []
        self._stops = False
        self._awake = False
        self._step_began: float | None = None
        self._told_stats_s = 0.0
        self.started: Future[None] = Future()
        self.restarts = 0
        self._thread = threading.Thread(target=self._run, name="onlooker-worker", daemon=True)

    # ------------------------------------------------------------------------------------------ from other threads

    def start(self) -> None:
        """Begin to load the model; `started` is done when it is there."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and the thread at work."""
        return self._engine is not None and self._thread.is_alive() and not self._stops

    @property
    def is_stalled(self) -> bool:
        """Whether one step takes so long that the device must hang, or the thread has died."""
        began = self._step_began
        hangs = began is not None and time.monotonic() - began > STALLED_S
        return hangs or (self.started.done() and not self._thread.is_alive() and not self._stops)

    @property
    def num_questions(self) -> int:
        """Questions in flight."""
        return len(self._questions)

    def wake(self) -> None:
        """Something waits."""
        with self._changed:
            self._awake = True
            self._changed.notify()

    def call(self, work: Callable[[Engine], Result]) -> "Future[Result]":
        """Have something done with the engine between two steps."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._stops:
                future.set_exception(Refusal(503, "stopped", "the server has stopped"))
                return future
            self._calls.append((work, future))
            self._awake = True
            self._changed.notify()
        return future

    def open(self, stream: Stream, make: Callable[[Engine], Any]) -> "Future[None]":
        """Give a stream the engine session that `make` makes, and watch it from now on."""

        def work(engine: Engine) -> None:
            stream.session = make(engine)
            stream.stats = figures_of(stream)
            self._streams[stream.id] = stream

        return self.call(work)

    def close(self, stream: Stream, why: str) -> "Future[None]":
        """End a stream: at once for its clients, and between two steps for what it holds."""
        stream.end("closed", why)
        return self.call(lambda engine: self._release(stream))

    def ask(self, question: Question) -> None:
        """Put a question; its answer comes through `question.pieces`."""
        put = self.call(lambda engine: self._put(question))

        def refused(future: "Future[None]") -> None:
            if error := future.exception():
                question.end(error if isinstance(error, Exception) else RuntimeError(str(error)))

        put.add_done_callback(refused)

    def stop(self, within_s: float = 10.0) -> None:
        """End the thread after the step it is at."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(within_s)

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._engine = self._make_engine()
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while not self._stops:
            try:
                self._turn()
            except Exception as error:
                LOG.exception("the engine failed")
                self._start_anew(error)
        self._engine = None
        for stream in list(self._streams.values()):
            stream.end("closed", "the server has stopped")
        self._drop_questions(Refusal(503, "stopped", "the server has stopped"))
        while self._calls:
            self._calls.popleft()[1].set_exception(Refusal(503, "stopped", "the server has stopped"))

    def _turn(self) -> None:
        assert self._engine is not None
        self._make_calls(self._engine)
        streams, questions = self._turns.choose(self._streams.values(), self._moving())
        batch = [(stream, arrived) for stream in streams if (arrived := stream.worker_take()) is not None]
        if batch or questions or self._probes:
            self._step_began = time.monotonic()
            self._step(batch, questions)
            seconds, self._step_began = time.monotonic() - self._step_began, None
            self._turns.note(len(batch), seconds)
            self._observer.stepped(len(batch), len(questions), seconds)
            self._tell_stats()
            return
        with self._changed:
            self._changed.wait_for(lambda: self._awake or self._stops, STATS_EVERY_S)
            self._awake = False
        self._tell_stats()

    def _make_calls(self, engine: Engine) -> None:
        while self._calls:
            work, future = self._calls.popleft()
            try:
                future.set_result(work(engine))
            except Exception as error:
                future.set_exception(error)

    def _moving(self) -> list[Question]:
        """The questions to move on, without those nobody waits for any more."""
        for question in [one for one in self._questions if one.cancelled or one.stream.state != "live"]:
            self._questions.remove(question)
            assert question.asking is not None
            question.asking.cancel()
            question.end(
                question.asking.answer()
                if question.cancelled
                else gone(question.stream.id, question.stream.why_ended or "")
            )
        return self._questions

    def _put(self, question: Question) -> None:
        question.stream.check_live()
        session = question.stream.session
        assert session is not None, "a stream is open before anyone can ask"
        question.asking = session.put(
            question.text, at=question.at_s, since=question.since_s, decoding=question.decoding
        )
        self._questions.append(question)

    # ---------------------------------------------------------------------------------------------------- stepping

    def _step(self, batch: Sequence[tuple[Stream, Arrived]], questions: Sequence[Question]) -> None:
        """One step for all. If it fails, everyone is stepped alone, and only who fails alone has failed."""
        probes = list(self._probes)
        try:
            self._step_together(batch, questions, probes)
            return
        except Exception as error:
            if len(batch) + len(questions) + len(probes) > 1:
                LOG.warning("a step of %d frames and %d questions failed: %s", len(batch), len(questions), error)
        broken: Exception | None = None
        for probe in probes:
            self._probes.remove(probe)
            probe.cancel()
        for one in batch:
            try:
                self._step_together([one], [], [])
            except Exception as error:
                broken = self._frame_failed(*one, error) or broken
        for question in questions:
            try:
                self._step_together([], [question], [])
            except Exception as error:
                broken = error if not isinstance(error, OnlookerError) else broken
                self._question_failed(question, error)
        if broken is not None and not self._is_sound():
            raise broken

    def _step_together(
        self, batch: Sequence[tuple[Stream, Arrived]], questions: Sequence[Question], probes: Sequence[Any]
    ) -> None:
        assert self._engine is not None
        arrivals = [(_session(stream), arrived.frame) for stream, arrived in batch]
        events = self._engine.step(arrivals, [*questions, *probes])  # pyright: ignore[reportArgumentType] - as askings
        for (stream, arrived), event in zip(batch, events, strict=True):
            if isinstance(event, Failed):
                self._observer.failed("frame")
                stream.worker_lost(arrived, event.error)
                continue
            stream.worker_took(arrived, event)
            self._observer.took(Taken(event, stream.lags[-1]))
            if stream.watch is not None:
                self._probes.extend(stream.watch.due(arrived.frame, event))
        for question in questions:
            if _asking(question).done:
                self._finish(question)
        self._end_probes()

    def _finish(self, question: Question) -> None:
        self._questions.remove(question)
        answer = _asking(question).answer()
        self._observer.answered(question, answer)
        question.end(answer)
        question.stream.touch()
        question.stream.events.add(Event("answer", answer_facts(question.stream.id, answer)))

    def _end_probes(self) -> None:
        if not any(stream.watch for stream in self._streams.values()):
            return
        self._probes = [probe for probe in self._probes if not probe.done]
        for stream in self._streams.values():
            if stream.watch is None:
                continue
            for alert in stream.watch.take():
                self._observer.alerted(alert)
                if self._on_alert is not None:
                    self._on_alert(alert, stream.id)
                stream.events.add(Event("alert", alert_facts(stream.id, alert)))

    # ----------------------------------------------------------------------------------------------------- failing

    def _frame_failed(self, stream: Stream, arrived: Arrived, error: Exception) -> Exception | None:
        """One of our errors costs the frame; any other costs the session, whose state cannot be trusted any more."""
        stream.worker_lost(arrived, error)
        if isinstance(error, OnlookerError):
            self._observer.failed("frame")
            return None
        LOG.error("session %s failed", stream.id, exc_info=error)
        self._observer.failed("session")
        stream.end("failed", "the engine failed on one of its frames")
        self._release(stream)
        return error

    def _question_failed(self, question: Question, error: Exception) -> None:
        LOG.error("a question to session %s failed", question.stream.id, exc_info=error)
        self._observer.failed("question")
        self._questions.remove(question)
        question.end(error)

    def _is_sound(self) -> bool:
        """Can the engine still do its work? After some failures of a device nothing works any more."""
        assert self._engine is not None
        try:
            with self._engine.open() as session:
                session.push(Frame(np.zeros((32, 32, 3), np.uint8), 0.0))
        except Exception:
            LOG.exception("the engine did not survive the failure")
            return False
        return True

    def _start_anew(self, error: Exception) -> None:
        self._observer.failed("engine")
        self._step_began, self._engine = None, None
        for stream in list(self._streams.values()):
            stream.end("failed", "the engine failed and was started anew")
        self._streams.clear()
        self._probes.clear()
        self._drop_questions(Refusal(503, "engine_failed", "the engine failed and is started anew", retry_after_s=5))
        while self._engine is None and not self._stops:
            try:
                self._engine = self._make_engine()
                self.restarts += 1
            except Exception:
                LOG.exception("the engine cannot be started; next attempt in 5 s")
                with self._changed:
                    self._changed.wait_for(lambda: self._stops, 5.0)

    def _drop_questions(self, error: Exception) -> None:
        for question in self._questions:
            question.end(error)
        self._questions.clear()

    def _release(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        if stream.watch is not None:
            for rule in stream.watch.rules:
                stream.watch.remove(rule.name)
            self._probes = [probe for probe in self._probes if not probe.done]
        if stream.session is not None:
            stream.session.close()

    # ------------------------------------------------------------------------------------------------------ telling

    def _tell_stats(self) -> None:
        now = time.monotonic()
        if now - self._told_stats_s < STATS_EVERY_S:
            return
        self._told_stats_s = now
        for stream in self._streams.values():
            before, stream.stats = stream.stats, figures_of(stream)
            if any(stream.stats[name] != before.get(name) for name in ("frames", "answers")):
                stream.events.add(Event("stats", stream.figures()))


def _session(stream: Stream) -> Any:
    assert stream.session is not None
    return stream.session


def _asking(question: Question) -> Asking:
    assert question.asking is not None
    return question.asking


def figures_of(stream: Stream) -> dict[str, Any]:
    """The numbers of a stream's engine session; on the worker's thread."""
    session = _session(stream)
    stats = session.stats()
    return {
        "time_s": session.time_s,
        "frames": stats.frames,
        "refreshed_frames": stats.refreshed_frames,
        "tokens_seen": stats.tokens_seen,
        "tokens_kept": stats.tokens_kept,
        "answers": stats.answers,
        "blocks_parked": stats.blocks_parked,
        "blocks_forgotten": stats.blocks_forgotten,
        "stage_s": {name: round(seconds, 4) for name, seconds in stats.stage_s.items()},
        "memory_bytes": stats.memory_bytes,
    }
