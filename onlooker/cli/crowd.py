"""Simulated streams on a real engine, to find how many hold: arrivals come by a clock, everything else is done."""

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onlooker.core.errors import CapacityError, InputError

if TYPE_CHECKING:
    from onlooker.core.frame import Frame
    from onlooker.engine import Engine, Session

QUESTION = "What is happening now, and what has changed since a moment ago?"
SETTLE_S = 1.5
"""Seconds of each trial before anything counts."""


class SkippingClock:
    """Real time, but for the moments when nobody has anything to do: those are skipped."""

    def __init__(self) -> None:
        self._skipped = -time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() + self._skipped

    def skip_to(self, moment: float) -> None:
        """Go on at this moment, if it is still to come."""
        self._skipped += max(0.0, moment - self())


@dataclass(frozen=True)
class Demand:
    """What every stream wants, and what it is promised. Raises `InputError` for values out of range."""

    fps: float = 1.0
    frame_lag_s: float = 1.0
    first_token_s: float = 0.5
    questions_per_minute: float = 1.0
    answer_tokens: int = 32
    most_frames: int = 16
    trial_s: float = 6.0
    """Seconds that count in one trial."""

    def __post_init__(self) -> None:
        for name in ("fps", "frame_lag_s", "first_token_s", "trial_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name.replace('_', '-')} is above 0", given=str(getattr(self, name)))
        if self.questions_per_minute < 0:
            raise InputError("questions a minute are 0 or more", given=str(self.questions_per_minute))


@dataclass(frozen=True)
class Trial:
    """What happened to so many streams."""

    streams: int
    holds: bool
    frame_lag_p50_s: float
    frame_lag_p95_s: float
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    dropped: int
    left_waiting: int
    questions: int
    steps: int
    frames_a_step: float
    busy: float
    """Share of the time in which a step ran."""
    stage_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each stage per frame, where stages were timed one by one; `rest` is what steps took beyond the
    stages of frames: passes of questions alone, their words, and the choice of what a step does."""
    failed: int = 0
    """Frames that could not be taken, or streams that could not join, for want of memory as a rule. With any of them a
    trial does not hold."""


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
        self._schedule = schedule
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

    def close(self) -> None:
        """Let go of all streams."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        self._next.clear()
        gc.collect()

    def trial(self, streams: int, *, by_stage: bool = False) -> Trial:
        """Let so many streams come in evenly, and questions among them at random, for `SETTLE_S` and `trial_s`."""
        import torch

        from onlooker.engine import Decoding
        from onlooker.engine.scheduler import SLO, DegradeLevel, Scheduler

        demand, chosen = self.demand, random.Random(streams)
        slo = SLO(
            frame_lag_s=demand.frame_lag_s,
            first_token_s=demand.first_token_s,
            most_frames=demand.most_frames,
            most_questions=48,
        )
        no_room = (CapacityError, torch.OutOfMemoryError)
        # Those that a larger trial left would only take memory away.
        for session in self._sessions[streams:]:
            session.close()
        del self._sessions[streams:], self._next[streams:]
        try:
            while len(self._sessions) < streams:
                self._join(self._sessions[-1], self._next[-1])
        except no_room:
            return _not_begun(streams, len(self._sessions))
        # From here on the clock runs: everything is set up.
        self.engine.profile, clock = by_stage, SkippingClock()
        scheduler = Scheduler(self.engine, slo, levels=[DegradeLevel("everything")], schedule=self._schedule, now=clock)
        queues = [scheduler.adopt(session, demand.fps) for session in self._sessions[:streams]]
        end_s = SETTLE_S + demand.trial_s
        num_frames = math.ceil(end_s * streams * demand.fps)
        arrivals = [(n / (streams * demand.fps), n % streams) for n in range(num_frames)]
        rate = streams * demand.questions_per_minute / 60
        questions = sorted((chosen.uniform(0, end_s), chosen.randrange(streams)) for _ in range(round(end_s * rate)))
        arrivals.reverse()
        questions.reverse()
        lags, first_tokens, put, worked, steps, stepped, spent = [], [], {}, 0.0, 0, 0, 0.0
        before = self._stages(streams)
        while (now := clock()) < end_s:
            while arrivals and arrivals[-1][0] <= now:
                at, number = arrivals.pop()
                queues[number].submit(self._frame(self._next[number], number), arrived_s=at)
                self._next[number] += 1
            while questions and questions[-1][0] <= now:
                at, number = questions.pop()
                try:
                    decoding = Decoding(demand.answer_tokens, temperature=0.0)
                    put[scheduler.ask(queues[number], QUESTION, put_s=at, decoding=decoding)] = at
                except no_room:  # refused, by the scheduler or by the memory
                    first_tokens.append(math.inf)
            report = scheduler.step()
            now = clock()
            if report.idle:
                if any(queue.is_waiting for queue in queues):
                    scheduler.wait(0.05)  # its picture is still being resized
                else:
                    clock.skip_to(min([end_s, *(queue[-1][0] for queue in (arrivals, questions) if queue)]))
                continue
            spent += report.seconds
            if now > SETTLE_S:
                lags.extend(report.lags_s)
                worked, steps, stepped = worked + report.seconds, steps + 1, stepped + len(report.events)
            for request in [request for request in put if request.has_spoken]:
                first_tokens.append(now - put.pop(request))
            first_tokens += [math.inf for request, _ in report.broken if put.pop(request, None) is not None]
        self.engine.profile = False
        waiting = sum(queue.is_waiting for queue in queues)
        dropped = sum(queue.counts.dropped for queue in queues)
        failed = sum(queue.counts.failed for queue in queues)
        # What nobody saw in time counts as never.
        lags += [math.inf] * (dropped + failed)
        first_tokens += [math.inf for at in put.values() if end_s - at > demand.first_token_s]
        for request, _ in list(scheduler.in_flight):
            request.cancel()
        if scheduler.resizer is not None:
            scheduler.resizer.shutdown(wait=True)
        lag, first = _percentiles(lags), _percentiles(first_tokens)
        holds = (
            bool(lags)
            and not failed
            and lag[1] <= demand.frame_lag_s
            and (not first_tokens or first[1] <= demand.first_token_s)
            and waiting <= max(2, 0.3 * streams * demand.fps)
        )
        stages = {name: after - before.get(name, 0.0) for name, after in self._stages(streams).items()}
        stages["rest"] = max(0.0, spent - sum(stages.values()))
        taken = max(1, sum(queue.counts.taken for queue in queues))
        return Trial(
            streams=streams,
            holds=holds,
            frame_lag_p50_s=lag[0],
            frame_lag_p95_s=lag[1],
            first_token_p50_s=first[0] if first_tokens else None,
            first_token_p95_s=first[1] if first_tokens else None,
            dropped=dropped,
            left_waiting=waiting,
            questions=len(first_tokens),
            steps=steps,
            frames_a_step=stepped / max(1, steps),
            busy=worked / demand.trial_s,
            stage_ms={name: 1000 * seconds / taken for name, seconds in stages.items()},
            failed=failed,
        )

    def _join(self, other: "Session", number: int) -> None:
        """One more stream: it has seen what the other has, and one frame more. So every stream's memory has found the
        size that it keeps, and they do not all refresh at the same frame."""
        session = other.fork()
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


def find_most(
    crowd: Crowd, first: int, most: int, seconds: float, on_trial: Callable[[Trial], None]
) -> tuple[Trial | None, list[Trial]]:
    """The largest number of streams that hold: doubling from `first` while they do, then halving the gap.

    Stops when the gap is five percent or the seconds are used up. Returns the best trial (None: not even one stream
    holds) and all trials.
    """
    began, trials = time.perf_counter(), []
    held, broken, streams = 0, most + 1, min(first, most)
    best: Trial | None = None
    while held < streams < broken:
        trial = crowd.trial(streams)
        trials.append(trial)
        on_trial(trial)
        if trial.holds:
            held, best = streams, trial
        else:
            broken = streams
        out_of_time = time.perf_counter() - began > seconds
        if broken - held <= max(1, 0.05 * held) or (out_of_time and held):
            break
        streams = min(2 * held, most) if broken > most else (held + broken) // 2
    return best, trials


def _not_begun(streams: int, joined: int) -> Trial:
    """A trial for which there was no memory."""
    never = math.inf
    return Trial(streams, False, never, never, None, None, 0, 0, 0, 0, 0.0, 0.0, failed=streams - joined)


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and p95; an infinite value among them stays one."""
    if not values:
        return math.inf, math.inf
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2], ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
