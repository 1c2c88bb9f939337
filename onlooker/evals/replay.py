"""Causal replay: frames reach a system in order, a question sees only its past, many videos run side by side.

With pace "max" a question is put after all frames up to its time. With pace "realtime" a virtual clock runs along: work
takes the time it really took, frames wait while the system is busy and are dropped when they are too old, and a
question is put when its time has come, whatever has been seen by then. So lag costs answers, and no test has to wait
for it.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, ReplyRecord, VideoRecord
from onlooker.engine import Engine
from onlooker.evals.asking import Due, History, schedule
from onlooker.evals.item import Item
from onlooker.evals.systems import AskedQuestion, Said, System, Watcher, as_system

Pace = Literal["max", "realtime"]
DROP_AFTER_S = 2.0
"""In real time a frame this old is dropped instead of watched."""
SLACK_S = 1e-6


@dataclass
class Outcome:
    """What came of one question: replies in order of time, or the failure that stood in their way."""

    query: QueryRecord
    replies: tuple[ReplyRecord, ...] = ()
    failure: str = ""

    @property
    def reply(self) -> ReplyRecord | None:
        """The reply that was asked for; of a polled question the last poll. None after a failure."""
        if self.failure or not self.replies:
            return None
        return next((r for r in self.replies if r.kind == "answer"), self.replies[-1])


@dataclass
class VideoOutcome:
    """What came of one video: the outcomes of its questions and the totals of its stream."""

    video: VideoRecord
    outcomes: list[Outcome]
    stats: dict[str, Any] = field(default_factory=dict)
    """Of the system, and `seconds` watched, `dropped` frames, greatest `lag_s`, `held` (time, bytes) over time."""


@dataclass
class _Run:
    """One video on its way."""

    item: Item
    watcher: Watcher
    frames: Iterator[Frame]
    due: list[Due]
    history: History = field(default_factory=History)
    upcoming: Frame | None = None
    failure: str = ""
    said: dict[str, list[ReplyRecord]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    held: list[tuple[float, int]] = field(default_factory=list)
    last_s: float = 0.0
    dropped: int = 0
    lag_s: float = 0.0

    def advance(self) -> None:
        """Fetch the next frame; a source that breaks ends the video."""
        try:
            self.upcoming = next(self.frames, None)
        except Exception as error:
            self.upcoming, self.failure = None, f"the video broke: {error}"


def replay(
    system: Engine | System,
    items: Iterable[Item],
    *,
    fps: float = 1.0,
    parallel: int = 8,
    max_new_tokens: int = 12,
    pace: Pace = "max",
    to_the_end: bool = True,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    on_video: Callable[[VideoOutcome], None] = lambda _: None,
    on_batch: Callable[[list[VideoOutcome]], None] = lambda _: None,
) -> list[Outcome]:
    """Watch every video once and ask its questions on the way; `parallel` videos share each step of the system.
    Without `to_the_end` a video is over with its last answer. `on_batch` is told of those that were side by side, once
    all are over, then `on_outcome` and `on_video` of each.

    A failure (no room, a broken video, a crash) is an outcome without a reply: it lowers the coverage, never the score.
    """
    runner, outcomes, source = as_system(system, max_new_tokens), [], iter(items)
    while batch := list(itertools.islice(source, parallel)):
        videos = _Batch(runner, batch, fps, pace, to_the_end).play()
        on_batch(videos)
        for video in videos:
            outcomes += video.outcomes
            for outcome in video.outcomes:
                on_outcome(outcome)
            on_video(video)
    return outcomes


class _Batch:
    """Some videos side by side, on one clock."""

    def __init__(self, system: System, items: list[Item], fps: float, pace: Pace, to_the_end: bool) -> None:
        self.system, self.fps, self.pace, self.to_the_end, self.now_s = system, fps, pace, to_the_end, 0.0
        self.runs = [_Run(item, system.open(item), item.open(fps), schedule(item.queries)) for item in items]

    def play(self) -> list[VideoOutcome]:
        for run in self.runs:
            run.advance()
        while True:
            self._ask_what_is_due()
            for run in self.runs if not self.to_the_end else ():
                run.upcoming = run.upcoming if run.due else None
            moving = self._next_frames()
            if not moving:
                break
            began = time.perf_counter()
            results = self.system.watch_all([(run.watcher, run.upcoming) for run in moving if run.upcoming])
            self._spend(time.perf_counter() - began)
            for run, error in zip(moving, results, strict=True):
                self._taken(run, error)
        return [self._finish(run) for run in self.runs]

    def _next_frames(self) -> list[_Run]:
        """The runs whose next frame is watched now; in real time the clock moves on, and stale frames are dropped."""
        moving = [run for run in self.runs if run.upcoming is not None]
        if self.pace == "max" or not moving:
            return moving
        for run in moving:
            while run.upcoming is not None and run.upcoming.time_s < self.now_s - DROP_AFTER_S:
                run.dropped += 1
                run.advance()
        moving = [run for run in moving if run.upcoming is not None]
        first = min((run.upcoming.time_s for run in moving if run.upcoming), default=None)
        if first is None:
            self._ask_what_is_due()
            return []
        self.now_s = max(self.now_s, first)
        return [run for run in moving if run.upcoming and run.upcoming.time_s <= self.now_s]

    def _taken(self, run: _Run, error: Exception | None) -> None:
        assert run.upcoming is not None
        if error is not None:
            run.failure, run.upcoming = f"frame at {run.upcoming.time_s:.1f} s: {error}", None
            return
        run.last_s = run.upcoming.time_s
        run.lag_s = max(run.lag_s, self.now_s - run.last_s) if self.pace == "realtime" else 0.0
        if (held := run.watcher.stats().get("memory_bytes")) is not None:
            run.held.append((run.last_s, int(held)))
        run.advance()

    def _spend(self, seconds: float) -> None:
        if self.pace == "realtime":
            self.now_s += seconds

    def _is_due(self, run: _Run, due: Due) -> bool:
        if run.upcoming is None:
            return True
        # A picture at the very time of the question is part of what it may see.
        waits_for = run.upcoming.time_s if self.pace == "max" else max(self.now_s, run.upcoming.time_s)
        return due.time_s < waits_for - SLACK_S

    def _ask_what_is_due(self) -> None:
        """Put every question whose time has come; those of all videos share their passes.

        A question whose words hang on an earlier reply (a dialogue, a poll that ends with yes) waits for that reply.
        """
        while True:
            asked: list[tuple[_Run, Due, AskedQuestion]] = []
            for run in self.runs:
                waiting: set[str] = set()
                for due in list(run.due):
                    if not self._is_due(run, due):
                        break
                    if due.thread in waiting:
                        continue
                    run.due.remove(due)
                    waiting |= {due.thread} if due.thread else set()
                    if trouble := self._trouble(run, due):
                        run.failed.setdefault(due.query.id, trouble)
                    elif not run.history.is_over(due):
                        question = AskedQuestion(run.history.words(due), due.time_s, due.since_s, due.query)
                        asked.append((run, due, question))
            if not asked:
                if not any(run.due and self._is_due(run, run.due[0]) for run in self.runs):
                    return
                continue
            began = time.perf_counter()
            replies = self.system.answer_all([(run.watcher, question) for run, _, question in asked])
            self._spend(time.perf_counter() - began)
            for (run, due, question), said in zip(asked, replies, strict=True):
                self._note(run, due, question, said)

    def _trouble(self, run: _Run, due: Due) -> str:
        if run.failure:
            return run.failure
        # The last picture of a video may stand for a while, but not for longer than a step and a bit.
        gap_s = due.time_s - run.last_s
        if run.upcoming is None and gap_s > 2.0 / self.fps + 1.0:
            return f"the video ended at {run.last_s:.1f} s, before the question at {due.time_s:.1f} s"
        return ""

    def _note(self, run: _Run, due: Due, question: AskedQuestion, said: Said | Exception) -> None:
        query = due.query
        if isinstance(said, Exception):
            run.failed.setdefault(query.id, f"{type(said).__name__}: {said}")
            return
        if said.latest_used_s is not None and said.latest_used_s > question.time_s + SLACK_S:
            run.failed[query.id] = f"looked ahead: the answer rests on {said.latest_used_s:.1f} s"
            return
        meta = dict(said.meta) | {"evidence_recalled": evidence_recalled(query, said.meta.get("cited", ()))}
        if self.pace == "realtime":
            meta["lag_s"] = max(0.0, self.now_s - due.time_s)
        reply = ReplyRecord(query.id, due.time_s, said.text, due.kind, latency=said.latency, meta=meta)
        run.said.setdefault(query.id, []).append(reply)
        if follow_up := run.history.heard(due, said.text):
            run.due.insert(0, follow_up)

    def _finish(self, run: _Run) -> VideoOutcome:
        stats = run.watcher.stats()
        run.watcher.close()
        stats |= {"seconds": run.last_s + 1.0 / self.fps, "dropped": run.dropped, "lag_s": run.lag_s}
        stats["held"] = run.held[:: max(1, len(run.held) // 100)]
        outcomes = []
        for query in run.item.queries:
            # A question counts as failed as soon as one of its polls did: half of it cannot be scored.
            failure = run.failed.get(query.id, "")
            replies = () if failure else tuple(run.said.get(query.id, ()))
            outcomes.append(Outcome(query, replies, failure or ("" if replies else "was never put")))
        return VideoOutcome(run.item.video, outcomes, stats)


def evidence_recalled(query: QueryRecord, cited: Iterable[Iterable[float]]) -> float | None:
    """Share of the evidence spans that a cited span (start, end, ...) touches; None where there is no evidence."""
    if not query.evidence:
        return None
    spans = [tuple(span)[:2] for span in cited]
    hit = [any(a <= end + 1 and b >= start - 1 for a, b in spans) for start, end in query.evidence]
    return sum(hit) / len(hit)
