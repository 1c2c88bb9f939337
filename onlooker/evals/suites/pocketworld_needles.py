"""Needles as in NIAVH: one thing that appears once, in videos of 40 lengths at 12 depths, asked about at the end.

NIAVH's lengths run from 1 to 320 seconds; ours begin at 8, because a thing has to stay for a while to be seen at one
frame a second. Its haystack is a film, ours a scene in which one thing stays all the time.
"""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np

from onlooker.core.records import QueryRecord
from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item
from onlooker.world import WorldSettings, make_episode

LENGTHS_S = tuple(round(float(length), 1) for length in np.linspace(8, 320, 40))
DEPTHS = tuple(round(float(depth), 3) for depth in np.linspace(0, 1, 12))
"""Where the needle begins, as a share of the places it can have."""
TASKS = ("when", "ever")
_NEEDLE = 1
"""Its number among the things of the scene; the one that stays is 0."""


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """`limit` questions, one a video; cells of the grid in an order that spreads over all of it, again and again."""
    cells = [(length, depth) for length in LENGTHS_S for depth in DEPTHS]
    order = random.Random(0).sample(range(len(cells)), len(cells))
    for number in range(limit):
        length, depth = cells[order[number % len(cells)]]
        yield _item(seed + number, length, depth, TASKS[number % len(TASKS)])


def _item(number: int, length_s: float, depth: float, task: str) -> Item:
    settings = WorldSettings(needle_depth=depth)
    episode = make_episode(number, "test", duration_s=length_s, kind="static_hour", settings=settings)
    ask_s, query = length_s - 0.1, None
    for attempt in range(40):
        # The questions about the needle among all that can be asked; "ever" also has a no, and "when" a departure.
        rng = random.Random(f"needle/{number}/{attempt}")
        found = episode.ask(TASKS[(TASKS.index(task) + attempt // 20) % 2], ask_s, rng)
        if found and found.answer != "no" and found.meta["sprites"] == [_NEEDLE]:
            query = found
            break
    assert query is not None, "a needle that has appeared can be asked about"
    return as_item(episode, [_named(query, length_s, depth)], "pocketworld_needles")


def _named(query: QueryRecord, length_s: float, depth: float) -> QueryRecord:
    needle = (query.evidence[0][0], query.evidence[-1][1])
    meta = query.meta | {"needle": True, "length_s": length_s, "depth": depth,
                         "age_s": round(max(0.0, query.ask_time - needle[1]), 3)}  # fmt: skip
    return dataclasses.replace(query, task=f"depth {100 * depth:.0f} %", meta=meta)
