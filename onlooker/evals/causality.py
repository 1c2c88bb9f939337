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

    Each question is replayed twice, alone: on the video as it is, and on one whose pictures after the question's time
    are negatives upside down. An honest system cannot tell the two apart. The last questions of a video have the
    shortest future, so the first ones are tried.
    """
    found = []
    for item in items:
        plain = [query for query in item.queries if not query.test_points and query.history != "own"]
        for query in sorted(plain, key=lambda query: query.ask_time)[:queries_per_video]:
            alone = dataclasses.replace(item, queries=(query,))
            told, otherwise = (_told(system, one, fps) for one in (alone, changed_after(alone, query.ask_time)))
            if told != otherwise:
                found.append(Violation(query.id, told, otherwise))
    return found


def _told(system: Engine | System, item: Item, fps: float) -> str:
    (outcome,) = replay(system, [item], fps=fps, parallel=1)
    return outcome.failure or "".join(reply.text for reply in outcome.replies)
