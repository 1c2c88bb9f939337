"""Causal replay: frames reach sessions in order, a question sees only its past, many videos run side by side."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from onlooker.core.events import Failed
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.engine import Decoding, Engine, Session
from onlooker.evals.suites import Item


@dataclass
class Outcome:
    """What came of one question: a reply, or the failure that stood in its way."""

    query: QueryRecord
    reply: ReplyRecord | None = None
    failure: str = ""


@dataclass
class _Run:
    """One video on its way."""

    item: Item
    session: Session
    frames: Iterator[Frame]
    upcoming: Frame | None
    waiting: list[QueryRecord]
    failure: str = ""
    outcomes: list[Outcome] = field(default_factory=list)


def replay(
    engine: Engine,
    items: Iterable[Item],
    *,
    fps: float = 1.0,
    parallel: int = 8,
    max_new_tokens: int = 12,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Watch every video once and ask its questions on the way; `parallel` videos share each step of the engine.

    A question is put after all frames up to its ask time and before any later one. A failure (no room, a broken video)
    is an outcome without a reply: it lowers the coverage, never the score.
    """
    outcomes: list[Outcome] = []
    source = iter(items)
    while batch := list(itertools.islice(source, parallel)):
        runs = [_start(engine, item, fps) for item in batch]
        while any(run.upcoming or run.waiting for run in runs):
            _ask_due(engine, runs, max_new_tokens)
            arrivals = [(run.session, run.upcoming) for run in runs if run.upcoming]
            moving = [run for run in runs if run.upcoming]
            if not arrivals:
                continue
            for run, event in zip(moving, engine.step(arrivals), strict=True):
                if isinstance(event, Failed):
                    run.failure, run.upcoming = f"frame at {event.time_s:.1f} s: {event.error}", None
                else:
                    run.upcoming = next(run.frames, None)
        for run in runs:
            run.session.close()
            for outcome in run.outcomes:
                on_outcome(outcome)
            outcomes += run.outcomes
    return outcomes


def _start(engine: Engine, item: Item, fps: float) -> _Run:
    frames = item.open(fps)
    return _Run(item, engine.open(), frames, next(frames, None), sorted(item.queries, key=lambda q: q.ask_time))


def _ask_due(engine: Engine, runs: list[_Run], max_new_tokens: int) -> None:
    """Put every question whose time has come, and answer all of them in common passes."""
    flying = []
    for run in runs:
        while run.waiting and (run.upcoming is None or run.waiting[0].ask_time < run.upcoming.time_s):
            query = run.waiting.pop(0)
            if run.failure or run.session.time_s is None:
                run.outcomes.append(Outcome(query, failure=run.failure or "asked before the first frame"))
                continue
            began = time.perf_counter()
            start = query.context[0]
            since = max(0.0, query.ask_time + start) if start < 0 else start
            asking = run.session.put(query.question, since=since, decoding=Decoding(max_new_tokens))
            flying.append((run, query, asking, began))
    while active := [asking for _, _, asking, _ in flying if not asking.done]:
        engine.step_asking(active)
    for run, query, asking, began in flying:
        answer, stats = asking.answer(), run.session.stats()
        reply = ReplyRecord(
            query=query.id,
            t=answer.time_s,
            text=answer.text,
            latency={"first": answer.timing.first_token_s, "total": time.perf_counter() - began},
            meta={
                "tokens_seen": stats.tokens_seen,
                "tokens_kept": stats.tokens_kept,
                "tokens_read": stats.tokens_read,
                "context_tokens": answer.usage.context_tokens,
                "frames": stats.frames,
                "evidence_recalled": _evidence_recalled(query, answer.citations),
            },
        )
        run.outcomes.append(Outcome(query, reply))


def _evidence_recalled(query: QueryRecord, citations) -> float | None:
    """Share of the evidence spans that a cited span touches; None where the question names no evidence."""
    if not query.evidence:
        return None
    hit = [any(c.start_s <= end + 1 and c.end_s >= start - 1 for c in citations) for start, end in query.evidence]
    return sum(hit) / len(hit)
