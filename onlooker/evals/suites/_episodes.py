"""Episodes of Pocket World as items: frames, ground truth, and standing requests as polls."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from onlooker.core.records import QueryRecord
from onlooker.evals.item import Item
from onlooker.world import Episode, rasterise, render_tables, video_record
from onlooker.world.stories import STORIES, make_story

SIDE = 128
POLL_EVERY_S = 1.0
"""How often a standing request is put, beside its test points, to see when the system would speak by itself."""


def as_item(episode: Episode, queries: Sequence[QueryRecord], suite: str) -> Item:
    """One item; questions carry the suite's name."""
    asked = [dataclasses.replace(standing(query, episode.duration_s), benchmark=suite) for query in queries]
    return Item(
        video_record(episode, fps=1.0),
        tuple(sorted(asked, key=lambda query: query.ask_time)),
        lambda fps: episode.frames(fps=fps, size=(SIDE, SIDE)),
        lambda time_s, grid: cover(episode, time_s, grid),
    )


def story_item(family: str, number: int, suite: str, level: str, most: int) -> Item:
    """The clip of a family of stories with this number, and up to `most` of its questions."""
    episode, queries, told = make_story(family, number, "test", level)
    item = as_item(episode, sorted(queries, key=lambda query: query.ask_time)[:most], suite)
    video = dataclasses.replace(item.video, fps=STORIES[family].fps, side=told.side)
    return dataclasses.replace(item, video=video)


def standing(query: QueryRecord, duration_s: float) -> QueryRecord:
    """A proactive question as a standing request: polled at its test points and once a second until its end."""
    if query.answer_type != "proactive":
        return query
    last = max([float(point["t"]) for point in query.test_points] + [end for _, end in query.windows])
    until_s = min(duration_s, max(last, query.ask_time + 10.0))
    return dataclasses.replace(
        query, options=("yes", "no"), meta=query.meta | {"poll_every_s": POLL_EVERY_S, "poll_until_s": until_s}
    )


def cover(episode: Episode, time_s: float, grid: tuple[int, int]) -> np.ndarray:
    """Share of each cell of a grid over the frame at `time_s` that shows a sprite, float32 `[rows, cols]`."""
    owner = rasterise(render_tables([episode], np.array([[time_s]])), SIDE, SIDE).owner[0, 0].numpy() >= 0
    rows, cols = (np.linspace(0, SIDE, cells + 1).round().astype(int) for cells in grid)
    sums = np.add.reduceat(np.add.reduceat(owner.astype(np.float32), rows[:-1], axis=0), cols[:-1], axis=1)
    return sums / np.outer(np.diff(rows), np.diff(cols))


def by_category(episode: Episode, tasks: Sequence[str]) -> list[QueryRecord]:
    """One question of each of these tasks, where the episode has one. The same arguments give the same questions."""
    return [query for k, task in enumerate(tasks) for query in _numbered(episode, k, task)]


def _numbered(episode: Episode, k: int, task: str) -> list[QueryRecord]:
    asked = episode.questions(1, rng_seed=k, tasks=(task,))
    return [dataclasses.replace(query, id=f"{episode.id}-{k:02d}-{task}") for query in asked]
