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
    system: Engine | System, items: Iterable[Item], *, fps: float = 1.0, queries_per_video: int = 3, parallel: int = 8
) -> list[Violation]:
    """The questions that a system answers otherwise when every picture after them is another one.

    Each question is replayed twice, on a stream of its own that ends with the answer: on the video as it is, and on one
    whose pictures after the question's time are negatives upside down. An honest system cannot tell the two apart. The
    last questions of a video have the shortest future, so the first ones are tried. `parallel` of these streams share
    each step: of a small model a step takes as long for one as for six.
    """
    asked = []
    for item in items:
        plain = [query for query in item.queries if not query.test_points and query.history != "own"]
        first = sorted(plain, key=lambda query: query.ask_time)[:queries_per_video]
        asked += [(query, dataclasses.replace(item, queries=(query,))) for query in first]
    changed = [changed_after(alone, query.ask_time) for query, alone in asked]
    told = _told(system, [*(alone for _, alone in asked), *changed], fps, parallel)
    return [
        Violation(query.id, one, other)
        for (query, _), one, other in zip(asked, told[: len(asked)], told[len(asked) :], strict=True)
        if one != other
    ]


def _told(system: Engine | System, items: list[Item], fps: float, parallel: int) -> list[str]:
    """What is said on each of these streams."""
    outcomes = replay(system, items, fps=fps, parallel=parallel, to_the_end=False)
    return [outcome.failure or "".join(reply.text for reply in outcome.replies) for outcome in outcomes]
