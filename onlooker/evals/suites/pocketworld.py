"""The held-out Pocket World: short clips, questions of all categories in equal shares."""

from collections.abc import Iterator

from onlooker.core.records import QueryRecord
from onlooker.evals.blind import LAST_FRAME_TASKS
from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import LEVEL_TASKS, LEVELS, TASKS, Episode, make_episode
from onlooker.world.episode import Split

SECONDS, PER_VIDEO = 24.0, 8


def items(limit: int, seed: int = 0, level: str = "L0", split: Split = "test") -> Iterator[Item]:
    """`limit` questions on clips of 24 seconds (of a level above L0: as long as the level says), eight on each.

    Clips come from the test split, whose seeds never meet those of training; `seed` is the first of them.
    """
    left, place = limit, 0
    while left > 0:
        episode, queries = clip(seed + place, place, level, split)
        queries = queries[:left]
        if queries:
            yield as_item(episode, queries, "pocketworld" if level == "L0" else f"pocketworld_{level}")
        left, place = left - len(queries), place + 1


def tasks_of(place: int, level: str) -> list[str]:
    """The categories that the `place`-th clip of a level asks for.

    Every clip asks another part of them, so that all get the same number of questions; above L0 those that one frame
    tells get half of it.
    """
    names = list(TASKS)
    if level != "L0":
        names = [*LEVEL_TASKS, *(task for task in LEVEL_TASKS if task not in LAST_FRAME_TASKS)]
    return [names[(place * PER_VIDEO + k) % len(names)] for k in range(PER_VIDEO)]


def clip(number: int, place: int, level: str = "L0", split: Split = "test") -> tuple[Episode, list[QueryRecord]]:
    """The clip with this seed and its questions in order of time; it is the `place`-th of its suite (`tasks_of`)."""
    seconds = SECONDS if level == "L0" else LEVELS[level].duration_s
    episode = make_episode(number, split, duration_s=seconds, level=level)
    queries = by_category(episode, tasks_of(place, level))
    return episode, sorted(queries, key=lambda query: query.ask_time)
