"""Simulated streams on a real engine, to find how many hold: arrivals come by a clock, everything else is done."""

import gc
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onlooker.cli.timing import SkippingClock, allocation_retries, allocations, give_back
from onlooker.cli.trial import Cost, Demand, Longest, Trial
from onlooker.core.errors import CapacityError
from onlooker.core.events import Failed

if TYPE_CHECKING:
    from onlooker.core.frame import Frame
    from onlooker.engine import Engine, Session
    from onlooker.engine.pauses import Pauses

QUESTION = "What is happening now, and what has changed since a moment ago?"
SETTLE_S = 1.5
"""Seconds of each trial before anything counts."""
COST_REPEATS, WARM_UPS = 8, 3
OUT_OF_MEMORY = "device memory"


class Crowd:
    """Streams that have watched for as long as their memory is, all with a past of their own."""

    def __init__(
        self,
        engine: "Engine",
        demand: Demand,
        frames: Sequence[np.ndarray],
        most_filling: int,
        schedule: str = "oldest_first",
    ) -> None:
        """`frames` are pictures that repeat; `most_filling` bounds the frames that fill a memory."""
        self.schedule = schedule
        self.engine, self.demand, self._frames = engine, demand, frames
        self._sessions: list[Session] = []
        self._next: list[int] = []
        """Of each session, the number of its next frame."""
        with engine.open() as filling:
            # Until the memory forgets something, that is, as it will be from then on.
            while filling.frames < most_filling and not filling.totals.blocks_forgotten:
                filling.push(self._frame(filling.frames, filling.frames))
            self._join(filling, filling.frames)

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Device bytes that one stream holds."""
        held = self._sessions[0].stats().memory_bytes
        return {name: size for name, size in held.items() if not name.startswith("host")}

    @property
    def stream_bytes(self) -> int:
        """Device bytes that one stream holds, and a tenth for what its questions hold for a while."""
        return round(1.1 * sum(self.bytes_by_kind.values()))

    @property
    def context_tokens(self) -> int:
        """Tokens in memory when a trial begins."""
        return sum(span.num_tokens for span in self._sessions[0].store.spans)

    @property
    def history_s(self) -> float:
        """Seconds of stream in memory when a trial begins."""
        seen = [span for span in self._sessions[0].store.spans if span.kind == "vision"]
        return seen[-1].end_s - seen[0].start_s + 1 / self.demand.fps if seen else 0.0

    def close(self) -> None:
        """Let go of all streams."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        self._next.clear()
        gc.collect()

    def trial(self, streams: int) -> Trial:
        """Let so many streams come in evenly, and questions among them at random, for `SETTLE_S` and `trial_s`."""
        if not self.gather(streams):
            return _not_begun(streams, len(self._sessions))
        from onlooker.engine.pauses import Pauses, rarely_collected

        self.engine.wait()  # those that joined are still being seen
        with rarely_collected(), Pauses() as pauses:  # as a server does
            run = Run(self, streams, pauses)
            run.go()
        return run.judged()

    def cost(self, frames: int, repeats: int = COST_REPEATS) -> Cost | None:
        """What a step of so many frames of so many streams takes, nothing else being asked; None: there is no room.

        Stages are timed in steps of their own, as waiting for each of them takes time.
        """
        if not self.gather(max(frames, len(self._sessions))):
            return None
        from onlooker.engine.pauses import rarely_collected

        try:
            with rarely_collected():
                return self._timed(frames, repeats)
        except _no_room():
            return None

    def _timed(self, frames: int, repeats: int) -> Cost:
        whole, before = [], {}
        for number in range(WARM_UPS + 2 * repeats):
            self.engine.stages.profile = number >= WARM_UPS + repeats
            if number == WARM_UPS + repeats:
                before = self._stages(frames)
            arrivals = [(session, self._resized(n)) for n, session in enumerate(self._sessions[:frames])]
            self.engine.wait()
            began = time.perf_counter()
            self.engine.step(arrivals)
            self.engine.wait()
            if WARM_UPS <= number < WARM_UPS + repeats:
                whole.append(time.perf_counter() - began)
        self.engine.stages.profile = False
        step_s, taken = statistics.median(whole), frames * repeats
        stages = {name: 1000 * (spent - before.get(name, 0.0)) / taken for name, spent in self._stages(frames).items()}
        return Cost(frames, 1000 * step_s, 1000 * step_s / frames, stages)

    def question_alone(self) -> dict[str, float]:
        """Milliseconds to the first token of a question that nothing delays, and of each further token; nothing where
        there is no room for one."""
        try:
            answers = [
                self._sessions[0].ask(QUESTION, max_new_tokens=self.demand.answer_tokens, temperature=0.0)
                for _ in range(COST_REPEATS)
            ][1:]
        except _no_room():
            return {}
        first = statistics.median(answer.timing.first_token_s for answer in answers)
        more = [
            (answer.timing.total_s - answer.timing.first_token_s) / (answer.usage.new_tokens - 1)
            for answer in answers
            if answer.usage.new_tokens > 1
        ]
        return {"first_token_ms": 1000 * first} | ({"decode_ms": 1000 * statistics.median(more)} if more else {})

    def gather(self, streams: int) -> bool:
        """Have just so many streams; False when there is no memory for them."""
        # Those that a larger trial left would only take memory away.
        for session in self._sessions[streams:]:
            session.close()
        if self._sessions[streams:]:
            del self._sessions[streams:], self._next[streams:]
            give_back(self.engine.device)
        try:
            while len(self._sessions) < streams:
                self._join(self._sessions[-1], self._next[-1])
        except _no_room():
            return False
        return True

    def _next_frame(self, number: int) -> "Frame":
        """The next frame of a stream."""
        self._next[number] += 1
        return self._frame(self._next[number] - 1, number)

    def _resized(self, number: int) -> "Frame":
        """The next frame of a stream at the model's size, as a scheduler's threads hand it to a step."""
        frame = self._next_frame(number)
        return replace(frame, image=self.engine.resize(frame.image))

    def _join(self, other: "Session", number: int) -> None:
        """One more stream: it has seen what the other has, and one frame more. So every stream's memory has found the
        size that it keeps, and they do not all refresh at the same frame."""
        session = other.fork()
        session.store.unshare()  # streams that were watched by themselves share nothing
        try:
            session.push(self._frame(number, len(self._sessions)))
        except BaseException:
            session.close()
            raise
        self._sessions.append(session)
        self._next.append(number + 1)

    def _stages(self, streams: int) -> dict[str, float]:
        total: dict[str, float] = {}
        for session in self._sessions[:streams]:
            for name, spent in session.totals.stage_s.items():
                total[name] = total.get(name, 0.0) + spent
        return total

    def _frame(self, number: int, stream: int) -> "Frame":
        from onlooker.core.frame import Frame

        image = self._frames[(number + 7 * stream) % len(self._frames)]
        return Frame(image, number / self.demand.fps)


class Run:
    """One trial as it goes: what came, what was asked, and how long each had to wait."""

    def __init__(self, crowd: Crowd, streams: int, pauses: "Pauses") -> None:
        from onlooker.engine.scheduler import SLO, DegradeLevel, Scheduler

        demand, chosen = crowd.demand, random.Random(streams)
        slo = SLO(demand.frame_lag_s, demand.first_token_s, most_frames=demand.most_frames, most_questions=48)
        self._crowd, self._streams, self._demand, self._clock = crowd, streams, demand, SkippingClock()
        self.scheduler = Scheduler(
            crowd.engine, slo, levels=[DegradeLevel("everything")], schedule=crowd.schedule, now=self._clock
        )
        self._queues = [self.scheduler.adopt(session, demand.fps) for session in crowd._sessions[:streams]]
        self._end_s = SETTLE_S + demand.trial_s
        count = math.ceil(self._end_s * streams * demand.fps)
        self._arrivals = [(n / (streams * demand.fps), n % streams) for n in reversed(range(count))]
        asked = round(self._end_s * streams * demand.questions_per_minute / 60)
        self._questions = sorted(
            ((chosen.uniform(0, self._end_s), chosen.randrange(streams)) for _ in range(asked)), reverse=True
        )
        self._put: dict[Any, float] = {}
        self._lags: list[float] = []
        self._first_tokens: list[float] = []
        self._failures: Counter[str] = Counter()
        self._worked, self._steps, self._taken = 0.0, 0, 0
        self._retries, self._asked = allocation_retries(crowd.engine.device), allocations(crowd.engine.device)
        self._pauses, self._collected, self._compiled = pauses, 0.0, []
        self._longest: Longest | None = None
        self._unready = 0.0

    def go(self, until_s: float = math.inf) -> None:
        """Until the time is over, or for now until this moment of it."""
        scheduler, clock, end_s = self.scheduler, self._clock, min(until_s, self._end_s)
        while (now := clock()) < end_s:
            began = now
            self._submit(now)
            report = scheduler.step()
            now = clock()
            self._note(began, now, len(report.events))
            if report.idle:
                if any(queue.is_waiting for queue in self._queues):
                    scheduler.wait(0.05)  # its picture is still being resized
                    self._unready += clock() - now
                else:
                    due = [queue[-1][0] for queue in (self._arrivals, self._questions) if queue]
                    clock.skip_to(min([end_s, *due]))
                continue
            if now > SETTLE_S:
                self._lags.extend(report.lags_s)
                self._worked += report.seconds
                self._steps, self._taken = self._steps + 1, self._taken + len(report.events)
            failed = [event for _, event in report.events if isinstance(event, Failed)]
            self._failures.update(type(event.error).__name__ for event in failed)
            for request in [request for request in self._put if request.has_spoken]:
                self._first_tokens.append(now - self._put.pop(request))
            self._first_tokens += [math.inf for one, _ in report.broken if self._put.pop(one, None) is not None]

    def _note(self, began: float, now: float, frames: int) -> None:
        """What stopped a step, and whether it is the longest so far."""
        paused = self._pauses.take()
        self._collected += paused.collected_s
        self._compiled += paused.compiled
        if self._longest is None or now - began > self._longest.seconds:
            asked = len(self.scheduler.in_flight)
            self._longest = Longest(now - began, began, frames, asked, paused.told)

    def _submit(self, now: float) -> None:
        """Hand over what has come by now."""
        from onlooker.engine import Decoding

        while self._arrivals and self._arrivals[-1][0] <= now:
            at, number = self._arrivals.pop()
            self._queues[number].submit(self._crowd._next_frame(number), arrived_s=at)
        while self._questions and self._questions[-1][0] <= now:
            at, number = self._questions.pop()
            decoding = Decoding(self._demand.answer_tokens, temperature=0.0)
            try:
                self._put[self.scheduler.ask(self._queues[number], QUESTION, put_s=at, decoding=decoding)] = at
            except _no_room():  # refused, by the scheduler or by the memory
                self._first_tokens.append(math.inf)

    def judged(self) -> Trial:
        """What became of the promises. Ends what is still in flight."""
        demand, counts = self._demand, [queue.counts for queue in self._queues]
        waiting = sum(queue.is_waiting for queue in self._queues)
        dropped, failed = sum(one.dropped for one in counts), sum(one.failed for one in counts)
        # What nobody saw in time counts as never.
        lags = self._lags + [math.inf] * (dropped + failed)
        late = [math.inf for at in self._put.values() if self._end_s - at > demand.first_token_s]
        firsts = self._first_tokens + late
        for request, _ in list(self.scheduler.in_flight):
            request.cancel()
        if self.scheduler.resizer is not None:
            self.scheduler.resizer.shutdown(wait=True)
        lag, first = _percentiles(lags), _percentiles(firsts)
        broken = {
            _named(self._failures) if failed else "": bool(failed),
            "frame lag": not lags or lag[1] > demand.frame_lag_s,
            "first token": bool(firsts) and first[1] > demand.first_token_s,
            "frames left waiting": waiting > max(2, 0.3 * self._streams * demand.fps),
        }
        retries = allocation_retries(self._crowd.engine.device) - self._retries
        if retries and any(broken.values()):  # each of them waits for the device and gives all free memory back
            broken = {OUT_OF_MEMORY: True} | broken
        broke = tuple(name for name, is_broken in broken.items() if is_broken)
        return Trial(
            streams=self._streams,
            holds=not broke,
            frame_lag_p50_s=lag[0],
            frame_lag_p95_s=lag[1],
            first_token_p50_s=first[0] if firsts else None,
            first_token_p95_s=first[1] if firsts else None,
            dropped=dropped,
            left_waiting=waiting,
            questions=len(firsts),
            steps=self._steps,
            frames_a_step=self._taken / max(1, self._steps),
            busy=self._worked / demand.trial_s,
            failed=failed,
            failures=dict(self._failures),
            broke=broke,
            step_ms_a_frame=1000 * self._worked / max(1, self._taken),
            allocation_retries=retries,
            device_allocations=allocations(self._crowd.engine.device) - self._asked,
            unready_s=self._unready,
            stalls=self.scheduler.cost.stalls,
            longest=self._longest,
            collected_s=self._collected,
            compiled=tuple(self._compiled),
        )


def _no_room() -> tuple[type[Exception], ...]:
    import torch

    return (CapacityError, torch.OutOfMemoryError)


def _named(failures: Mapping[str, int]) -> str:
    """Memory, where frames failed for want of it; else what they failed of."""
    others = sorted(set(failures) - {kind.__name__ for kind in _no_room()})
    return f"failed frames ({', '.join(others)})" if others else OUT_OF_MEMORY


def _not_begun(streams: int, joined: int) -> Trial:
    """A trial for which there was no memory."""
    never = math.inf
    return Trial(
        streams, False, never, never, None, None, 0, 0, 0, 0, 0.0, 0.0, failed=streams - joined, broke=(OUT_OF_MEMORY,)
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and p95; an infinite value among them stays one."""
    if not values:
        return math.inf, math.inf
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2], ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
