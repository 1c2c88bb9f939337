"""The one thread that owns the device: takes waiting frames and questions, steps the engine, hands results back."""

import collections
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from onlooker.core.contracts import SchedulePolicy
from onlooker.core.errors import OnlookerError
from onlooker.core.events import Alert, Answer, Failed
from onlooker.core.frame import Frame
from onlooker.engine import SLO, Busy, Engine, Scheduler, Session, ready
from onlooker.engine.pauses import Pauses, rarely_collected
from onlooker.engine.report import Report, SchedulerStats
from onlooker.engine.request import Request
from onlooker.engine.stream_queue import StreamQueue, Taken
from onlooker.server.notes import tell_notes
from onlooker.server.observing import Observer, figures_of
from onlooker.server.question import Question
from onlooker.server.refusals import Refusal, gone
from onlooker.server.stream import Event, Stream
from onlooker.server.wire import alert_facts, answer_facts

Result = TypeVar("Result")

LOG = logging.getLogger("onlooker.server")
STALLED_S = 120.0
"""A step that takes longer than this means that the device hangs."""
STATS_EVERY_S = 1.0
LONG_EVERY_S = 10.0
"""Steps that are too long are told of no more often than that."""


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
        slo: SLO | None = None,
        on_alert: Callable[[Alert, str], None] | None = None,
        schedule: str | SchedulePolicy = "oldest_first",
    ) -> None:
        self._make_engine, self._schedule = make_engine, schedule
        self._observer, self._slo = observer or Observer(), slo or SLO()
        self._on_alert = on_alert
        self._scheduler: Scheduler | None = None
        self._calls: collections.deque[tuple[Callable[[Scheduler], Any], Future[Any]]] = collections.deque()
        self._streams: dict[StreamQueue, Stream] = {}
        self._questions: dict[Request, Question] = {}
        self._stops = threading.Event()
        self._woken = False
        self._step_began: float | None = None
        self._pauses = Pauses()
        self._told_stats_s = self._told_long_s = 0.0
        self.stats: SchedulerStats | None = None
        """Where the engine stands, as of the last second."""
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
        return self._scheduler is not None and self._thread.is_alive() and not self._stops.is_set()

    @property
    def is_stalled(self) -> bool:
        """Whether one step takes so long that the device must hang, or the thread has died."""
        began = self._step_began
        hangs = began is not None and time.monotonic() - began > STALLED_S
        return hangs or (self.started.done() and not self._thread.is_alive() and not self._stops.is_set())

    @property
    def num_questions(self) -> int:
        """Questions in flight."""
        return len(self._questions)

    def wake(self) -> None:
        """Something is to be looked at before the next step."""
        self._woken = True
        if (scheduler := self._scheduler) is not None:
            scheduler.wake()

    def call(self, work: Callable[[Engine], Result]) -> "Future[Result]":
        """Have something done with the engine between two steps."""
        return self._call(lambda scheduler: work(scheduler.engine))

    def _call(self, work: Callable[[Scheduler], Result]) -> "Future[Result]":
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        self._calls.append((work, future))
        if self._stops.is_set():  # nobody may be there to make it
            self._refuse_calls()
        self.wake()
        return future

    def open(self, stream: Stream, make: Callable[[Engine], Session], *, admit: bool = True) -> "Future[None]":
        """Give a stream a queue around the engine session that `make` makes, and watch it from now on.

        Fails with `Busy` where the promises to others would break, unless `admit` is false or the stream can wait.
        """

        def work(scheduler: Scheduler) -> None:
            fps = stream.settings.fps
            try:
                if admit and not stream.backlog:
                    scheduler.admit(fps)
            except Busy:
                self._observer.refused("streams")
                raise
            queue = scheduler.adopt(make(scheduler.engine), fps, backlog=stream.backlog, settle=stream.settle)
            stream.queue = queue
            stream.stats = figures_of(stream)
            self._streams[queue] = stream

        return self._call(work)

    def close(self, stream: Stream, why: str) -> "Future[None]":
        """End a stream: at once for its clients, and between two steps for what it holds."""
        stream.end("closed", why)
        return self._call(lambda scheduler: self._release(stream))

    def ask(self, question: Question) -> None:
        """Put a question; its answer comes through `question.pieces`."""
        put = self._call(lambda scheduler: self._put(scheduler, question))

        def refused(future: "Future[None]") -> None:
            if error := future.exception():
                question.end(error if isinstance(error, Exception) else RuntimeError(str(error)))

        put.add_done_callback(refused)

    def stop(self, within_s: float = 10.0) -> None:
        """End the thread after the step it is at."""
        self._stops.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(within_s)

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._scheduler = self._make_scheduler()
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while self._scheduler is not None and not self._stops.is_set():
            try:
                with rarely_collected(), self._pauses:
                    self._serve(self._scheduler)
            except Exception as error:
                LOG.exception("the engine failed")
                self._start_anew(error)
        scheduler, self._scheduler = self._scheduler, None
        for stream in list(self._streams.values()):
            stream.end("closed", "the server has stopped")
        self._drop_questions(_stopped())
        self._refuse_calls()
        if scheduler is not None:
            scheduler.close()

    def _serve(self, scheduler: Scheduler) -> None:
        while not self._stops.is_set():
            self._turn(scheduler)

    def _make_scheduler(self) -> Scheduler:
        scheduler = Scheduler(ready(self._make_engine, self._slo), self._slo, schedule=self._schedule)
        self.stats = scheduler.stats()
        return scheduler

    def _refuse_calls(self) -> None:
        while self._calls:
            with contextlib.suppress(IndexError):  # two threads may find the same last one
                self._calls.popleft()[1].set_exception(_stopped())

    def _turn(self, scheduler: Scheduler) -> None:
        self._woken = False
        self._make_calls(scheduler)
        self._end_unwanted()
        self._step_began = time.monotonic()
        report = scheduler.step()
        self._step_began = None
        self._tell_long(report)
        if report.idle:
            scheduler.wait(STATS_EVERY_S, lambda: self._woken)
        else:
            self._tell(scheduler, report)
        self._tell_stats(scheduler)

    def _tell_long(self, report: Report) -> None:
        """Log a step that by itself breaks what is promised of frames, and what is known to have stopped it."""
        paused, now = self._pauses.take(), time.monotonic()
        if report.seconds > self._slo.frame_lag_s and now - self._told_long_s > LONG_EVERY_S:
            self._told_long_s = now
            about = (report.seconds, len(report.events), len(report.texts), paused.told or "no known cause")
            LOG.warning("a step took %.2f s, with %d frames and %d questions: %s", *about)

    def _make_calls(self, scheduler: Scheduler) -> None:
        while self._calls:
            work, future = self._calls.popleft()
            try:
                future.set_result(work(scheduler))
            except Exception as error:
                future.set_exception(error)

    def _end_unwanted(self) -> None:
        """Stop the questions nobody waits for any more."""
        for request, question in list(self._questions.items()):
            if not question.cancelled and question.stream.state == "live":
                continue
            del self._questions[request]
            request.cancel()
            stream = question.stream
            question.end(
                question.whole(request.answer()) if question.cancelled else gone(stream.id, stream.why_ended or "")
            )

    def _put(self, scheduler: Scheduler, question: Question) -> None:
        question.stream.check_live()
        queue = question.stream.queue
        assert queue is not None, "a stream is open before anyone can ask"
        when = {"at": question.at_s, "since": question.since_s}
        try:
            request = scheduler.ask(queue, question.text, put_s=question.put_s, decoding=question.decoding, **when)
        except Busy:
            self._observer.refused("answer_too_late")
            raise
        self._questions[request] = question

    # ------------------------------------------------------------------------------------------ what a step has done

    def _tell(self, scheduler: Scheduler, report: Report) -> None:
        self._observer.stepped(len(report.events), len(report.texts), report.seconds)
        for request, text in report.texts:
            if self._questions[request].say(text):
                request.cancel()
            if request.done:
                self._finish(self._questions.pop(request), request.answer())
        for request, error in report.broken:
            self._question_failed(self._questions.pop(request), error)
        for (queue, event), queued, lag_s in zip(report.events, report.frames_queued, report.lags_s, strict=True):
            stream = self._streams[queue]
            if isinstance(event, Failed):
                self._frame_failed(stream, event.error)
                continue
            self._observer.took(stream, queued, Taken(event, lag_s))
            if stream.watch is not None:
                scheduler.probe(stream.watch.due(queued.frame, event))
        self._tell_alerts(scheduler)
        if report.errors and not self._is_sound(scheduler.engine):
            raise report.errors[0]

    def _finish(self, question: Question, answer: Answer) -> None:
        answer = question.whole(answer)
        self._observer.answered(question, answer)
        question.end(answer)
        question.stream.touch()
        standing = {} if question.standing is None else {"standing": question.standing}
        question.stream.events.add(Event("answer", answer_facts(question.stream, answer) | standing))

    def _tell_alerts(self, scheduler: Scheduler) -> None:
        for stream in self._streams.values():
            if stream.watch is None:
                continue
            for alert in stream.watch.take():
                self._observer.alerted(alert)
                if self._on_alert is not None:
                    self._on_alert(alert, stream.id)
                stream.events.add(Event("alert", alert_facts(stream, alert)))
            scheduler.probe(stream.watch.begun())

    def _tell_stats(self, scheduler: Scheduler) -> None:
        now = time.monotonic()
        if now - self._told_stats_s < STATS_EVERY_S:
            return
        self._told_stats_s = now
        degrade_level, self.stats = self.stats and self.stats.degrade_level, scheduler.stats()
        stats, lowest = self.stats, len(scheduler.levels) - 1
        serving = {"degrade_level": stats.degrade_level, "level": stats.level, "lowest_level": lowest}
        for queue, stream in self._streams.items():
            if degrade_level not in (None, self.stats.degrade_level):
                stream.events.add(Event("serving", serving))
            before, stream.stats = stream.stats, figures_of(stream)
            # Clients hear through the stream's own feed; what the engine's session noted for its caller is let go.
            tell_notes(stream, queue.session.events())
            is_news = any(stream.stats[name] != before.get(name) for name in ("frames", "answers"))
            if is_news and stream.events.num_readers:  # figures grow old at once: they are not kept for later
                stream.events.add(Event("stats", stream.figures()))

    # ----------------------------------------------------------------------------------------------------- failing

    def _frame_failed(self, stream: Stream, error: Exception) -> None:
        """One of our errors costs the frame; any other costs the session, whose state cannot be trusted any more."""
        if isinstance(error, OnlookerError):
            self._observer.failed("frame")
            return
        LOG.error("session %s failed", stream.id, exc_info=error)
        self._observer.failed("session")
        stream.end("failed", "the engine failed on one of its frames")
        self._release(stream)

    def _question_failed(self, question: Question, error: Exception) -> None:
        LOG.error("a question to session %s failed", question.stream.id, exc_info=error)
        self._observer.failed("question")
        question.end(error)

    def _is_sound(self, engine: Engine) -> bool:
        """Can the engine still do its work? After some failures of a device nothing works any more."""
        try:
            with engine.open() as session:
                session.push(Frame(np.zeros((32, 32, 3), np.uint8), 0.0))
        except Exception:
            LOG.exception("the engine did not survive the failure")
            return False
        return True

    def _start_anew(self, error: Exception) -> None:
        self._observer.failed("engine")
        old, self._step_began, self._scheduler = self._scheduler, None, None
        for stream in list(self._streams.values()):
            stream.end("failed", "the engine failed and was started anew")
        self._streams.clear()
        self._drop_questions(Refusal(503, "engine_failed", "the engine failed and is started anew", retry_after_s=5))
        if old is not None and old.resizer is not None:
            old.resizer.shutdown(wait=False, cancel_futures=True)
        old = None
        gc.collect()  # what failed may hold itself, and with it the device's memory
        while self._scheduler is None and not self._stops.is_set():
            try:
                self._scheduler = self._make_scheduler()
                self.restarts += 1
            except Exception:
                LOG.exception("the engine cannot be started; next attempt in 5 s")
                self._stops.wait(5.0)

    def _drop_questions(self, error: Exception) -> None:
        for question in self._questions.values():
            question.end(error)
        self._questions.clear()

    def _release(self, stream: Stream) -> None:
        if stream.watch is not None:
            for rule in stream.watch.rules:
                stream.watch.remove(rule.name)
        if stream.queue is not None:
            self._streams.pop(stream.queue, None)
            stream.queue.close()


def _stopped() -> Refusal:
    return Refusal(503, "stopped", "the server has stopped")
