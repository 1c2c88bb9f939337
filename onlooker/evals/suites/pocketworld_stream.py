"""Open questions along one stream as in VStream-QA and RVS: two minutes of video, sixteen questions, no options shown.

All questions of a video are put to one session, each when its time has come and about what has been seen by then.
Answers are short and exact, so that no judge is needed.
"""

import dataclasses
from collections.abc import Iterator

from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import as_item
from onlooker.world import LEVEL_TASKS, make_episode

SECONDS, PER_VIDEO, LEVEL = 120.0, 16, "L1"
TASKS = tuple(task for task in LEVEL_TASKS if task != "proactive")


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """`limit` questions."""
    left, number = limit, seed
    while left > 0:
        episode = make_episode(number, "test", duration_s=SECONDS, level=LEVEL)
        found = episode.questions(PER_VIDEO, rng_seed=0, tasks=TASKS)[:left]
        opened = [dataclasses.replace(query, answer_type="text", options=()) for query in found]
        if opened:
            yield as_item(episode, opened, "pocketworld_stream")
        left, number = left - len(opened), number + 1
