"""Temporal stress: frozen and noise, slow drift, pan, cuts, flicker, a small blink, one event in a static hour."""

import dataclasses
from collections.abc import Iterator

from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import TASKS, make_episode

KINDS = {
    "frozen_noise": 24.0, "slow_drift": 24.0, "pan": 24.0, "cuts": 24.0, "flicker": 24.0, "small_blink": 24.0,
    "static_hour": 3600.0,
}  # fmt: skip
"""Kind of episode and its length in seconds."""
PER_VIDEO = 6
_FITTING = {"small_blink": ("repetition", "present", "counting"), "static_hour": ("ever", "when", "before", "order")}


def items(limit: int, seed: int = 0, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Item]:
    """`limit` questions, the kinds in turn. A question's task is named after its kind ("cuts/order").

    The static hour comes once in each round, so a small `limit` (up to 36) never gets to it.
    """
    names, left, number = list(TASKS), limit, seed
    while left > 0:
        for place, kind in enumerate(kinds):
            if left <= 0:
                return
            episode = make_episode(number, "test", duration_s=KINDS[kind], kind=kind)
            pool = _FITTING.get(kind, names)
            start = (number - seed) * PER_VIDEO + place
            asked = by_category(episode, [pool[(start + k) % len(pool)] for k in range(PER_VIDEO)])
            queries = [dataclasses.replace(query, task=f"{kind}/{query.task}") for query in asked[:left]]
            if queries:
                yield as_item(episode, queries, "pocketworld_temporal")
            left -= len(queries)
        number += 1
