"""The held-out Pocket World: short clips, questions of all categories in equal shares."""

from collections.abc import Iterator

from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import TASKS, make_episode

SECONDS, PER_VIDEO = 24.0, 8


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """`limit` questions on clips of 24 seconds, eight on each.

    Clips come from the test split, whose seeds never meet those of training; `seed` is the first of them.
    """
    names, left, number = list(TASKS), limit, seed
    while left > 0:
        episode = make_episode(number, "test", duration_s=SECONDS)
        # Every clip asks another part of the categories, so that all of them get the same number of questions.
        start = (number - seed) * PER_VIDEO
        queries = by_category(episode, [names[(start + k) % len(names)] for k in range(PER_VIDEO)])
        queries = sorted(queries, key=lambda query: query.ask_time)[:left]
        if queries:
            yield as_item(episode, queries, "pocketworld")
        left, number = left - len(queries), number + 1
