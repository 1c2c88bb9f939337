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
take part in every step; the streams that have waited longest go first, with as many frames as leave a step short enough
for a question that may come. A stream holds one waiting frame (or a backlog, if it asked for one): when a newer one
comes, the older is dropped and counted. When the work offered exceeds what steps can do, all streams descend a ladder
together (fewer frames, fewer tokens a frame, rarer refreshes), and climb again when there is room: `stats().rung` says
where they are. If a step fails, everyone is stepped alone, and only who fails alone has failed.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from onlooker.core.checks import number
from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.events import Failed, FrameTaken
from onlooker.engine.asking import Asking, InFlight, release
from onlooker.engine.engine import Engine
from onlooker.engine.lane import ASSUMED_FPS, Lane, LaneCounts, Offer, Settle, Taken, closed, forget
from onlooker.engine.load import Recent, Share, StepCost
from onlooker.engine.promises import Busy, Promises, Rung, default_ladder
from onlooker.engine.report import Report, SchedulerStats
from onlooker.engine.sampling import Decoding
from onlooker.engine.session import Session
from onlooker.engine.watching import Probe

LOG = logging.getLogger("onlooker.engine")
LEARNING_STEPS = 8
"""Steps before costs are believed."""


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
        self._closed = False
        self._lanes: list[Lane] = []
        self._askings: list[tuple[Asking, float]] = []
        self._probes: list[Probe] = []
        self._gone = LaneCounts()
        self._refused = 0
        self._lags, self._first_tokens, self._questions = Recent(), Recent(), Share()
        self._changed = threading.Condition()
        self._since: float | None = None
        """Since when there has been too much to do (or, on a lower rung, room)."""

    # ------------------------------------------------------------------------------------------------- coming, going

    def open(self, fps: float | None = 1.0) -> Lane:
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
            what = f"no room for another stream beside {len(self._lanes)}"
            raise Busy(what, given=reason, retry_s=self.promises.recover_s)

    def adopt(self, session: Session, fps: float | None = 1.0, *, backlog: int = 0, settle: Settle = forget) -> Lane:
        """A lane for a session that is open already, without asking whether there is room (see `Lane`)."""
        self._check_open()
        lane = Lane(self, session, fps, backlog, settle)
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
        for probe in self._probes:
            if probe.session is lane.session:
                probe.cancel()
        self._prune()
        lane.end(closed())
        _add(self._gone, lane.counts)
        lane.session.close()

    def close(self) -> None:
        """Close every lane and end the threads; the engine has its own methods again."""
        self._closed = True
        for lane in list(self._lanes):
            lane.close()
        if self.resizer is not None:
            self.resizer.shutdown(wait=True, cancel_futures=True)
        self.engine.use(**self.engine.methods)

    def ask(
        self, lane: Lane, question: str, *, put_s: float | None = None, decoding: Decoding | None = None, **when: Any
    ) -> Asking:
        """Put a question to a lane's session; steps move it on until `asking.done`. `when` is `at` and `since`.

        Raises `Busy` when so many questions are in flight that its first token would come too late, and what
        `Session.put` raises. `put_s` is when it was asked, on the scheduler's clock (default: now).
        """
        self._check_open()
        self._prune()
        expected = self.cost.expected_s(self._frames_in_a_step(), 1)
        full = len(self._askings) >= self.promises.most_questions
        # Where even a question alone would be late, it is not the others that make it so, and refusing would not help.
        late = bool(self._askings) and self.cost.steps >= LEARNING_STEPS and expected > self.promises.first_token_s
        if full or late:
            self._refused += 1
            reason = f"{len(self._askings)} in flight" if full else f"a step takes {expected:.2f} s"
            raise Busy("the question would be answered too late", given=reason, retry_s=max(1.0, expected))
        asking = lane.session.put(question, decoding=decoding, **when)
        self._askings.append((asking, self.now() if put_s is None else put_s))
        self.wake()
        return asking

    def probe(self, probes: Sequence[Probe]) -> None:
        """Looks of rules (`Watch.due`): steps move them on with everything else, until they are done."""
        self._probes.extend(probes)

    # ------------------------------------------------------------------------------------------------------ working

    def step(self) -> Report:
        """Take in the oldest waiting frames and move all questions on, in one pass; ends when the device is done."""
        self._settle()
        self._prune()
        chosen = self._choose()
        askings, probes = list(self._askings), list(self._probes)
        if not chosen and not askings and not probes:
            return Report()
        silent = {asking for asking, _ in askings if not asking.has_spoken}
        began, began_s = time.perf_counter(), self.now()
        events, texts, broken = self._advance(chosen, [asking for asking, _ in askings], probes)
        spent = time.perf_counter() - began
        now = max(self.now(), began_s + spent)
        self.cost.note(len(chosen), len(askings) + len(probes), spent)
        if askings or probes:
            alone = self.cost.question_s if chosen else spent
            self._questions.note(min(alone, spent), now)
        lags = tuple(now - offer.arrived_s for _, offer in chosen)
        for (lane, offer), event, lag in zip(chosen, events, lags, strict=True):
            self._count(lane, offer, event, lag)
        for asking, put_s in askings:
            if asking in silent and asking.has_spoken:
                self._first_tokens.note(now - put_s)
        self._prune()
        told = tuple((lane, event) for (lane, _), event in zip(chosen, events, strict=True))
        return Report(told, texts, spent, lags, tuple(offer for _, offer in chosen), broken, len(probes))

    def _advance(
        self, chosen: Sequence[tuple[Lane, Offer]], askings: Sequence[Asking], probes: Sequence[Probe]
    ) -> tuple[list[FrameTaken | Failed], tuple[tuple[Asking, str], ...], tuple[tuple[Asking, Exception], ...]]:
        """Events of the frames, texts of the questions, and the questions that failed."""
        try:
            events, told = self._pass(chosen, [*askings, *probes])
        except Exception as error:
            LOG.warning("a step of %d frames and %d questions failed: %s", len(chosen), len(askings), error)
            release(error)
        else:
            return self._told(events, told, askings, probes)
        # Not inside of `except`, where the error would still hold the memory of the step that failed.
        for probe in probes:
            probe.cancel()
        events, told = [], []
        for lane, offer in chosen:
            try:
                events += self._pass([(lane, offer)], [])[0]
            except Exception as error:
                events.append(Failed(offer.frame.time_s, release(error)))
                lane.session.give_up()
        for asking in askings:
            try:
                told += self._pass([], [asking])[1]
            except Exception as error:
                told.append(release(error))
        return self._told(events, told, askings, ())

    def _told(
        self,
        events: list[FrameTaken | Failed],
        told: Sequence[str | Exception],
        askings: Sequence[Asking],
        probes: Sequence[Probe],
    ) -> tuple[list[FrameTaken | Failed], tuple[tuple[Asking, str], ...], tuple[tuple[Asking, Exception], ...]]:
        """What `_advance` gives; those that failed are over."""
        for probe, text in zip(probes, told[len(askings) :], strict=True):
            if isinstance(text, Exception):
                probe.cancel()
        texts, broken = [], []
        for asking, text in zip(askings, told, strict=False):
            if isinstance(text, Exception):
                asking.abandon()
                broken.append((asking, text))
            else:
                texts.append((asking, text))
        return events, tuple(texts), tuple(broken)

    def _pass(
        self, chosen: Sequence[tuple[Lane, Offer]], askings: Sequence[InFlight]
    ) -> tuple[list[FrameTaken | Failed], list[str | Exception]]:
        arrivals = [(lane.session, offer.picture or offer.frame) for lane, offer in chosen]
        done = self.engine.advance(arrivals, askings)
        self.engine.wait()
        return done

    def _count(self, lane: Lane, offer: Offer, event: FrameTaken | Failed, lag: float) -> None:
        if isinstance(event, Failed):
            lane.counts.failed += 1
            lane.settle(offer, event.error)
            return
        lane.counts.taken += 1
        lane.counts.late += lag > self.promises.frame_lag_s
        self._lags.note(lag)
        lane.settle(offer, Taken(event, lag))

    def _prune(self) -> None:
        """Forget what is done, also what somebody cancelled."""
        self._askings = [(asking, put_s) for asking, put_s in self._askings if not asking.done]
        self._probes = [probe for probe in self._probes if not probe.done]

    def wait(self, timeout_s: float, or_until: Callable[[], object] = lambda: False) -> bool:
        """Wait until there is something to do, at most so long; whether there is. `or_until` is looked at on `wake`."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._has_work() or or_until(), timeout_s))

    def wake(self) -> None:
        """Let a `wait` look again, from any thread."""
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
            waiting=sum(lane.num_waiting for lane in self._lanes),
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

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed("the scheduler was closed", do="make a new one")

    def _has_work(self) -> bool:
        return bool(self._askings or self._probes) or any(lane.waiting_since() is not None for lane in self._lanes)

    def _frames_in_a_step(self) -> int:
        """So many that the step lasts no longer than it may."""
        promises, in_flight = self.promises, len(self._askings) + len(self._probes)
        if self.cost.steps < LEARNING_STEPS:
            return promises.most_frames
        return self.cost.frames_within(promises.step_s or promises.first_token_s / 2, in_flight, promises.most_frames)

    def _choose(self) -> list[tuple[Lane, Offer]]:
        """Frames of the streams that have waited longest; all promise the same lag, so they are due in this order."""
        since = [(arrived, n) for n, lane in enumerate(self._lanes) if (arrived := lane.waiting_since()) is not None]
        chosen = []
        for _, place in sorted(since)[: self._frames_in_a_step()]:
            lane = self._lanes[place]
            if (offer := lane.take()) is not None:
                chosen.append((lane, offer))
        return chosen

    def _load(self) -> float:
        """Share of the engine's time that streams and questions ask for now."""
        now = self.now()
        return self._share_of(sum(lane.offered_fps(now) for lane in self._lanes)) + self._questions.at(now)

    def _share_of(self, fps: float) -> float:
        """Share of the engine's time that so many frames a second take at this rung, when steps are full."""
        return fps * self.rung.fps_share * (self.cost.base_s / self._frames_in_a_step() + self.cost.frame_s)

    def _no_room(self, fps: float) -> str | None:
        """Why there is no room for another stream of this rate. For the first there always is: it breaks no promise."""
        promises = self.promises
        if not self._lanes:
            return None
        if self.level:
            return f"the streams that are there have to do with less ({self.rung.name})"
        now = self.now()
        load = self._share_of(fps + sum(lane.promised_fps(now) for lane in self._lanes)) + self._questions.at(now)
        if load > promises.most_load and self.cost.steps >= LEARNING_STEPS:
            return f"{load:.0%} of the time would be promised, {promises.most_load:.0%} may be"
        if promises.device_budget_bytes is not None:
            held = [_device_bytes(lane.session) for lane in self._lanes]
            if sum(held) + max(held) > promises.device_budget_bytes:
                return f"{sum(held)} bytes are held, {promises.device_budget_bytes} allowed"
        return None

    def _settle(self) -> None:
        """Descend or climb the ladder when overload, or room, has lasted."""
        if self.cost.steps < LEARNING_STEPS:
            return
        now, load, promises = self.now(), self._load(), self.promises
        lower, higher = self.level + 1 < len(self.ladder), self.level > 0
        # Half, because the rung above may ask for twice the work.
        wanted = +1 if load > 1.0 and lower else -1 if load < 0.5 * min(1.0, promises.most_load) and higher else 0
        if not wanted:
            self._since = None
            return
        if self._since is None:
            self._since = now
        if now - self._since >= (promises.patience_s if wanted > 0 else promises.recover_s):
            self._since = None
            self.level += wanted
            self.engine.use(**{**self.engine.methods, **self.rung.methods})


def _device_bytes(session: Session) -> int:
    held = session.stats().memory_bytes
    return sum(size for name, size in held.items() if not name.startswith("host"))


def _add(total: LaneCounts, counts: LaneCounts) -> None:
    for field in dataclasses.fields(LaneCounts):
        setattr(total, field.name, getattr(total, field.name) + getattr(counts, field.name))
