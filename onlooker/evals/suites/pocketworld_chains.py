"""Chains as in SVBench: questions about the same thing, one after the other along the video, with the dialogue so far.

A chain follows one thing through its life; each question is linked to the one before it, and the model's own answers go
before the next question, as in SVBench's dialogue evaluation. Answers are exact, so that no judge is needed.
"""

import dataclasses
from collections.abc import Iterator

from onlooker.core.records import QueryRecord
from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item
from onlooker.world import Episode, make_episode

SECONDS, LEVEL = 32.0, "L1"
TASKS = ("glance", "repetition", "before", "when", "place", "identity")
LONGEST, LEAST_GAP_S = 4, 2.0


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """About `limit` questions in chains of two to four; a video has the chains that it gives."""
    left, number = limit, seed
    while left > 0:
        episode = make_episode(number, "test", duration_s=SECONDS, level=LEVEL)
        queries = [query for chain in chains(episode) for query in chain]
        number += 1
        # A chain is kept whole or not begun.
        while queries and len(queries) > max(left, LONGEST):
            queries = [query for query in queries if query.group != queries[-1].group]
        if queries:
            yield as_item(episode, queries, "pocketworld_chains")
            left -= len(queries)


def chains(episode: Episode) -> list[list[QueryRecord]]:
    """The chains of an episode, by the thing they are about."""
    about: dict[int, list[QueryRecord]] = {}
    for attempt in range(3):
        for query in episode.questions(16, rng_seed=attempt, tasks=TASKS):
            if query.meta["sprites"]:
                about.setdefault(query.meta["sprites"][0], []).append(query)
    found = []
    for sprite, queries in sorted(about.items()):
        chosen: list[QueryRecord] = []
        for query in sorted(queries, key=lambda query: query.ask_time):
            far = not chosen or query.ask_time - chosen[-1].ask_time >= LEAST_GAP_S
            if far and query.question not in {other.question for other in chosen} and len(chosen) < LONGEST:
                chosen.append(query)
        if len(chosen) > 1:
            found.append(_linked(f"{episode.id}-{sprite}", chosen))
    return found


def _linked(group: str, queries: list[QueryRecord]) -> list[QueryRecord]:
    names = [f"{group}-{order}" for order in range(len(queries))]
    return [
        dataclasses.replace(
            query, id=names[order], group=group, order=order, links=tuple(names[order - 1 : order]), history="own"
        )
        for order, query in enumerate(queries)
    ]
