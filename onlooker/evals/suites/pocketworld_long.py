"""Long streams: half an hour and more, and a thing seen once is asked about at the end, from several depths."""

import dataclasses
from collections.abc import Iterator

from onlooker.core.errors import InputError
from onlooker.core.records import QueryRecord
from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item
from onlooker.world import Episode, WorldSettings, make_episode

MINUTES, PER_VIDEO = 31.0, 4
DEPTHS = (0.03, 0.25, 0.5, 0.75, 0.95)
"""Where the needle lies, as a share of the stream."""
TASKS = ("when", "before", "ever", "order")


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """Up to `limit` questions on streams of 31 minutes, four on each, asked in the last seconds.

    The depth of the oldest needle goes through `DEPTHS` from stream to stream, and `meta["age_s"]` says how old the
    evidence of each question is. Questions whose true answer is "no" have no evidence and are left out.
    """
    left, number = limit, seed
    while left > 0:
        depth = DEPTHS[(number - seed) % len(DEPTHS)]
        settings = WorldSettings(needle_depth=depth)
        episode = make_episode(number, "test", duration_s=MINUTES * 60, kind="long", settings=settings)
        if queries := _about_the_past(episode, depth)[:left]:
            yield as_item(episode, queries, "pocketworld_long")
        left, number = left - len(queries), number + 1
        if number - seed > 50 * limit:
            raise InputError("the world makes too few such questions", given=f"{limit - left} of {limit}")


def _about_the_past(episode: Episode, depth: float) -> list[QueryRecord]:
    """Questions with evidence, asked at the end; those about needles first, then the ones with the oldest evidence."""
    ask_s = episode.duration_s - 1.0
    found: dict[str, QueryRecord] = {}
    for attempt in range(24):
        for query in episode.questions(8, rng_seed=attempt, tasks=TASKS, between_s=(ask_s - 1, ask_s)):
            if query.evidence and query.answer != "no":
                age_s = query.ask_time - max(end for _, end in query.evidence)
                needle = bool(set(query.meta["sprites"]) & set(episode.needles))
                name = f"{episode.id}-{len(found):02d}-{query.task}"
                meta = query.meta | {"age_s": round(age_s, 3), "needle": needle, "depth": depth}
                found.setdefault(query.question, dataclasses.replace(query, id=name, meta=meta))
    oldest_first = sorted(found.values(), key=lambda query: (not query.meta["needle"], -query.meta["age_s"]))
    return oldest_first[:PER_VIDEO]
