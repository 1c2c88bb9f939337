"""Catch systems that look into the future: change everything after a question and see whether its answer changes."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from onlooker.engine import Engine
from onlooker.evals.item import Item, changed_after
from onlooker.evals.replay import replay
from onlooker.evals.systems import System


@dataclass(frozen=True)
class Violation:
    """A question whose answer depended on what came after it."""

    query: str
    told: str
    told_with_another_future: str


def violations(
    system: Engine | System, items: Iterable[Item], *, fps: float = 1.0, queries_per_video: int = 3
) -> list[Violation]:
    """The questions that a system answers otherwise when every picture after them is another one.

    Each question is replayed twice, on a stream of its own that ends with the answer: on the video as it is, and on one
    whose pictures after the question's time are negatives upside down. An honest system cannot tell the two apart. The
    last questions of a video have the shortest future, so the first ones are tried.
    """
    found = []
    for item in items:
        plain = [query for query in item.queries if not query.test_points and query.history != "own"]
        first = sorted(plain, key=lambda query: query.ask_time)[:queries_per_video]
        alone = [dataclasses.replace(item, queries=(query,)) for query in first]
        changed = [changed_after(one, query.ask_time) for one, query in zip(alone, first, strict=True)]
        both = (_told(system, some, fps) for some in (alone, changed))
        found += [
            Violation(query.id, told, otherwise)
            for query, told, otherwise in zip(first, *both, strict=True)
            if told != otherwise
        ]
    return found


def _told(system: Engine | System, items: list[Item], fps: float) -> list[str]:
    """What is said on each of these streams, side by side."""
    outcomes = replay(system, items, fps=fps, parallel=max(1, len(items)), to_the_end=False)
    return [outcome.failure or "".join(reply.text for reply in outcome.replies) for outcome in outcomes]
