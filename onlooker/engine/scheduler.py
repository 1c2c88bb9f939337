"""Many live streams on one engine: whose frame is next, who waits, who is refused, and what gives when it is too much.

    scheduler = Scheduler(engine)
    queue = scheduler.open(fps=1.0)         # raises Busy (reason, retry_s) when there is no room
    queue.submit(frame)                      # any thread; a newer frame replaces one that still waits
    request = scheduler.ask(queue, "...")    # raises Busy when the answer would come too late
    while serving:                         # the thread that owns the engine
        report = scheduler.step()          # one pass for all: events, new text
        if report.idle:
            scheduler.wait(0.1)

A frame is due `frame_lag_s` after it was submitted, a question's first token `first_token_s` after. Questions
take part in every step; the streams that have waited longest go first, with as many frames as leave a step short enough
for a question that may come. A stream holds one waiting frame (or a backlog, if it asked for one): when a newer one
comes, the older is dropped and counted. When the work submitted exceeds what steps can do, all streams are degraded
together, a level at a time (fewer frames, fewer tokens a frame, rarer refreshes), and restored when there is room:
`stats().degrade_level` says where they are. If a step fails, everyone is stepped alone, and only who fails alone has
failed. On a GPU the next step's frames are chosen and seen while this one's words are looked at (see `Ahead`).
"""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from onlooker.core import registry
from onlooker.core.checks import number
from onlooker.core.contracts import SchedulePolicy
from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.events import Failed, FrameTaken
from onlooker.engine.ahead import Ahead, arrivals_of
from onlooker.engine.background import Background
from onlooker.engine.engine import Engine
from onlooker.engine.load import LEARNING_STEPS, Recent, Share, StepCost
from onlooker.engine.probing import Aside
from onlooker.engine.report import Report, SchedulerStats, told_of
from onlooker.engine.request import InFlight, Request, release
from onlooker.engine.sampling import Decoding
from onlooker.engine.session import Session
from onlooker.engine.slo import SLO, Busy, DegradeLevel, default_levels
from onlooker.engine.stream_queue import (
    ASSUMED_FPS,
    QueueCounts,
    QueuedFrame,
    Settle,
    StreamQueue,
    Taken,
    closed,
    forget,
)
from onlooker.engine.thinking import go_on_thinking
from onlooker.engine.turns import Turns

REALISES = ("streamdiffusionv2",)

LOG = logging.getLogger("onlooker.engine")
SETTLE_EVERY_S = 0.1


class Scheduler:
    """See the head of this file. `submit` and `wait` may be called from any thread, all else from the engine's."""

    def __init__(
        self,
        engine: Engine,
        slo: SLO | None = None,
        *,
        levels: Sequence[DegradeLevel] | None = None,
        schedule: str | SchedulePolicy = "oldest_first",
        ahead: bool | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`levels` go from everything to least (default: `default_levels`); `schedule` says whose frame is next;
        `ahead` lets the next step's frames be seen ahead (default: on a GPU); `now` is the clock, in seconds."""
        self.engine, self.slo, self.now = engine, slo or SLO(), now
        self.levels = tuple(levels) if levels is not None else default_levels(engine)
        if not self.levels:
            raise InputError("a scheduler needs a degrade level", given="none", do="DegradeLevel('everything')")
        workers = self.slo.workers
        self.resizer = ThreadPoolExecutor(workers, "onlooker-resize") if workers else None
        self.cost = StepCost()
        self.level = 0
        self._closed = False
        self._queues: list[StreamQueue] = []
        self._requests: list[tuple[Request, float]] = []
        self._probes: list[Aside] = []
        self._background = Background(self.slo.most_background, self.slo.background_s, now)
        self.turns = Turns(registry.make("schedule", schedule))
        self._ahead = Ahead(engine, ahead)
        self._gone = QueueCounts()
        self._refused = 0
        self._lags, self._first_tokens, self._questions = Recent(), Recent(), Share()
        self._changed = threading.Condition()
        self._settled_s = -math.inf
        self._since: float | None = None
        """Since when there has been too much to do (or, on a lower degrade_level, room)."""

    # ------------------------------------------------------------------------------------------------- coming, going

    def open(self, fps: float | None = 1.0) -> StreamQueue:
        """A new stream of at most so many frames a second. Raises `Busy` when the promises to others would break."""
        self.admit(fps)
        return self.adopt(self.engine.open(), fps)

    def admit(self, fps: float | None = 1.0) -> None:
        """Raise `Busy` when the promises to others would break if one more stream of this rate came. With `fps=None`
        it takes what there is time for, and is promised one frame a second."""
        self._check_open()
        if fps is not None:
            number("fps", fps, above=0.0, most=1000.0, unit="frames a second", do="fps=1.0, or None for no promise")
        if (reason := self._no_room(ASSUMED_FPS if fps is None else fps)) is not None:
            self._refused += 1
            what = f"no room for another stream beside {len(self._queues)}"
            raise Busy(what, given=reason, retry_s=self.slo.recover_s)

    def adopt(
        self, session: Session, fps: float | None = 1.0, *, backlog: int = 0, settle: Settle = forget
    ) -> StreamQueue:
        """A queue for a session that is open already, without asking whether there is room (see `StreamQueue`)."""
        self._check_open()
        queue = StreamQueue(self, session, fps, backlog, settle)
        self._queues.append(queue)
        return queue

    def remove(self, queue: StreamQueue) -> None:
        """Close a queue and its session. Closing twice is fine."""
        if queue not in self._queues:
            return
        self._queues.remove(queue)
        self.turns.left(queue)
        for request, _ in self._requests:
            if request.session is queue.session:
                request.cancel()
        for probe in self._probes:
            if probe.session is queue.session:
                probe.cancel()
        self._background.end(queue.session)
        self._prune()
        queue.end(closed())
        for queued in self._ahead.left(queue):
            queue.counts.dropped += 1
            queue.settle(queued, closed())
        self._gone.add(queue.counts)
        queue.session.close()

    def close(self) -> None:
        """Close every queue and end the threads; the engine has its own methods again."""
        self._closed = True
        for queue in list(self._queues):
            queue.close()
        if self.resizer is not None:
            self.resizer.shutdown(wait=True, cancel_futures=True)
        self.engine.use(**self.engine.methods)

    def ask(
        self,
        queue: StreamQueue,
        question: str,
        *,
        put_s: float | None = None,
        decoding: Decoding | None = None,
        **when: Any,
    ) -> Request:
        """Put a question to a queue's session; steps move it on until `request.done`. `when` is `at` and `since`.

        Raises `Busy` when so many questions are in flight that its first token would come too late, and what
        `Session.submit` raises. `put_s` is when it was asked, on the scheduler's clock (default: now).
        """
        self._check_open()
        self._prune()
        expected = self.cost.expected_s(self._frames_in_a_step(), 1)
        full = len(self._requests) >= self.slo.most_questions
        # Where even a question alone would be late, it is not the others that make it so, and refusing would not help.
        late = bool(self._requests) and self.cost.steps >= LEARNING_STEPS and expected > self.slo.first_token_s
        if full or late:
            self._refused += 1
            reason = f"{len(self._requests)} in flight" if full else f"a step takes {expected:.2f} s"
            raise Busy("the question would be answered too late", given=reason, retry_s=max(1.0, expected))
        request = queue.session.submit(question, decoding=decoding, **when)
        self._requests.append((request, self.now() if put_s is None else put_s))
        self.wake()
        return request

    def probe(self, probes: Sequence[Aside]) -> None:
        """Looks and replies of rules (`Watch.due`, `Watch.begun`): steps move them on with everything else, until they
        are done. What has a lower priority waits until no frame does, and is dropped and counted under load."""
        self._probes.extend(probe for probe in probes if not probe.priority)
        if later := [probe for probe in probes if probe.priority]:
            self._background.add(later, overloaded=self.level > 0 or self._load() > 1.0)

    # ------------------------------------------------------------------------------------------------------ working

    def step(self) -> Report:
        """Take in the oldest waiting frames and move all questions on, in one pass; ends when the device is done."""
        self._settle()
        self._prune()
        chosen = self._ahead.take() or self._choose()
        background = self._background.ready(gives_way=self._frames_wait(), most=self._works_in_a_step(len(chosen)))
        requests, probes = list(self._requests), [*self._probes, *background]
        if not chosen and not requests and not probes:
            return Report()
        silent = {request for request, _ in requests if not request.has_spoken}
        began, began_s = time.perf_counter(), self.now()
        events, texts, broken = self._advance(chosen, [request for request, _ in requests], probes)
        spent = time.perf_counter() - began
        now = max(self.now(), began_s + spent)
        self.cost.note(len(chosen), len(requests) + len(probes), spent, len(background))
        if requests or len(probes) > len(background):  # what gives way is no load
            alone = self.cost.question_s if chosen else spent
            self._questions.note(min(alone, spent), now)
        lags = tuple(now - queued.arrived_s for _, queued in chosen)
        for (queue, queued), event, lag in zip(chosen, events, lags, strict=True):
            self._count(queue, queued, event, lag)
        for request, put_s in requests:
            if request in silent and request.has_spoken:
                self._first_tokens.note(now - put_s)
        sessions = [queue.session for queue in self._queues]
        taken = [(queue.session, event) for (queue, _), event in zip(chosen, events, strict=True)]
        self.probe(go_on_thinking(self.engine, sessions, taken))
        self._prune()
        told = tuple((queue, event) for (queue, _), event in zip(chosen, events, strict=True))
        return Report(told, texts, spent, lags, tuple(queued for _, queued in chosen), broken, len(probes))

    def _advance(
        self, chosen: Sequence[tuple[StreamQueue, QueuedFrame]], requests: Sequence[Request], probes: Sequence[Aside]
    ) -> tuple[list[FrameTaken | Failed], tuple[tuple[Request, str], ...], tuple[tuple[Request, Exception], ...]]:
        """Events of the frames, texts of the questions, and the questions that failed."""
        try:
            events, told = self._pass(chosen, [*requests, *probes], self._ahead.looking(self._choose))
        except Exception as error:
            LOG.warning("a step of %d frames and %d questions failed: %s", len(chosen), len(requests), error)
            release(error)
        else:
            return (events, *told_of(told, requests, probes))
        # Not inside of `except`, where the error would still hold the memory of the step that failed.
        for probe in probes:
            probe.cancel()
        events, told = [], []
        for queue, queued in chosen:
            try:
                events += self._pass([(queue, queued)], [])[0]
            except Exception as error:
                events.append(Failed(queued.frame.time_s, release(error)))
                queue.session.give_up()
        for request in requests:
            try:
                told += self._pass([], [request])[1]
            except Exception as error:
                told.append(release(error))
        return (events, *told_of(told, requests, ()))

    def _choose(self) -> list[tuple[StreamQueue, QueuedFrame]]:
        return self.turns.choose(self._queues, self._frames_in_a_step(), self.now())

    def _pass(
        self, chosen: Sequence[tuple[StreamQueue, QueuedFrame]], requests: Sequence[InFlight], looking: Any = None
    ) -> tuple[list[FrameTaken | Failed], list[str | Exception]]:
        done = self.engine.advance(arrivals_of(chosen), requests, looking)
        self._ahead.wait()
        return done

    def _count(self, queue: StreamQueue, queued: QueuedFrame, event: FrameTaken | Failed, lag: float) -> None:
        if isinstance(event, Failed):
            queue.counts.failed += 1
            queue.settle(queued, event.error)
            return
        queue.counts.taken += 1
        queue.counts.late += lag > self.slo.frame_lag_s
        self._lags.note(lag)
        queue.settle(queued, Taken(event, lag))

    def _prune(self) -> None:
        """Forget what is done, also what somebody cancelled."""
        self._requests = [(request, put_s) for request, put_s in self._requests if not request.done]
        self._probes = [probe for probe in self._probes if not probe.done]

    def wait(self, timeout_s: float, or_until: Callable[[], object] = lambda: False) -> bool:
        """Wait until there is something to do, at most so long; whether there is. `or_until` is looked at on `wake`."""
        timeout_s = self.turns.within(timeout_s, self.now())
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._has_work() or or_until(), timeout_s))

    def wake(self) -> None:
        """Let a `wait` look again, from any thread."""
        with self._changed:
            self._changed.notify_all()

    @property
    def in_flight(self) -> Sequence[tuple[Request, float]]:
        """Questions that are not answered yet, and when they were put."""
        return self._requests

    @property
    def degrade_level(self) -> DegradeLevel:
        """What is done now."""
        return self.levels[self.level]

    def stats(self) -> SchedulerStats:
        """Where things stand."""
        frames = dataclasses.replace(self._gone)
        for queue in self._queues:
            frames.add(queue.counts)
        return SchedulerStats(
            streams=len(self._queues),
            waiting=sum(queue.num_waiting for queue in self._queues) + len(self._ahead),
            questions=len(self._requests),
            degrade_level=self.degrade_level.name,
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
            background=len(self._background),
            background_dropped=self._background.dropped,
            background_deferred=self._background.deferred,
        )

    # -------------------------------------------------------------------------------------------------------- inside

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the scheduler was closed", do="make a new one")

    def _has_work(self) -> bool:
        return bool(self._requests or self._probes or self._ahead or len(self._background)) or self._frames_wait()

    def _frames_wait(self) -> bool:
        """Whether there are frames that may be taken now."""
        return not self.turns.rest_s(self.now()) and any(queue.first_ready() for queue in self._queues)

    def _frames_in_a_step(self) -> int:
        """So many that the step lasts no longer than it may."""
        slo, in_flight = self.slo, len(self._requests) + len(self._probes)
        if self.cost.steps < LEARNING_STEPS:
            return slo.most_frames
        return self.cost.frames_within(slo.step_s or slo.first_token_s / 2, in_flight, slo.most_frames)

    def _works_in_a_step(self, frames: int) -> int:
        """So many works of lower priority that they add little to a step of so many frames."""
        asked = len(self._requests) + len(self._probes)
        most, share = self.slo.most_background, self.slo.background_share
        return self.cost.works_within(share, frames, asked, most, LEARNING_STEPS)

    def _load(self) -> float:
        """Share of the engine's time that streams and questions ask for now."""
        now = self.now()
        return self._share_of(sum(queue.submitted_fps(now) for queue in self._queues)) + self._questions.at(now)

    def _share_of(self, fps: float) -> float:
        """Share of the engine's time that so many frames a second take at this degrade_level, when steps are full."""
        fps = self.turns.bounded(fps)
        return fps * self.degrade_level.fps_share * (self.cost.base_s / self._frames_in_a_step() + self.cost.frame_s)

    def _no_room(self, fps: float) -> str | None:
        """Why there is no room for another stream of this rate. For the first there always is: it breaks no promise."""
        slo = self.slo
        if not self._queues:
            return None
        if self.level:
            return f"the streams that are there have to do with less ({self.degrade_level.name})"
        now = self.now()
        load = self._share_of(fps + sum(queue.promised_fps(now) for queue in self._queues)) + self._questions.at(now)
        if load > slo.most_load and self.cost.steps >= LEARNING_STEPS:
            return f"{load:.0%} of the time would be promised, {slo.most_load:.0%} may be"
        if slo.device_budget_bytes is not None:
            held = [queue.device_bytes() for queue in self._queues]
            if sum(held) + max(held) > slo.device_budget_bytes:
                return f"{sum(held)} bytes are held, {slo.device_budget_bytes} allowed"
        return None

    def _settle(self) -> None:
        """Descend or climb the degrade levels when overload, or room, has lasted."""
        if self.cost.steps < LEARNING_STEPS:
            return
        now, slo = self.now(), self.slo
        if now - self._settled_s < SETTLE_EVERY_S:  # to ask hundreds of streams takes milliseconds
            return
        load, self._settled_s = self._load(), now
        lower, higher = self.level + 1 < len(self.levels), self.level > 0
        # Half, because the degrade_level above may ask for twice the work.
        wanted = +1 if load > 1.0 and lower else -1 if load < 0.5 * min(1.0, slo.most_load) and higher else 0
        if not wanted:
            self._since = None
            return
        if self._since is None:
            self._since = now
        if now - self._since >= (slo.patience_s if wanted > 0 else slo.recover_s):
            self._since = None
            self.level += wanted
            self.engine.use(**{**self.engine.methods, **self.degrade_level.methods})
