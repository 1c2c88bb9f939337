"""Suites: videos with questions, in the order a stream would show them."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, VideoRecord
from onlooker.world import TASKS, make_episode
from onlooker.world.export import video_record

BOUNDARY_S = 0.25
"""How far after its ask time a question may be put so that it falls between two frames, seconds."""


@dataclass(frozen=True)
class Item:
    """One video, its questions by ask time, and how to watch it."""

    video: VideoRecord
    queries: tuple[QueryRecord, ...]
    open: Callable[[float], Iterator[Frame]]
    """Frames at so many per second, from the start."""


def pocketworld(limit: int = 1000, seed: int = 0, seconds: float = 24.0, per_video: int = 8) -> Iterator[Item]:
    """The held-out Pocket World: `limit` questions of all categories, `per_video` of them on each clip.

    Clips come from the test split, whose seeds never meet those of training; `seed` is the first of them.
    """
    if limit < 1 or per_video < 1:
        raise InputError("a suite needs questions", given=f"limit={limit}, per_video={per_video}", do="use 1 or more")
    names = list(TASKS)
    left, number = limit, seed
    while left > 0:
        episode = make_episode(number, "test", duration_s=seconds)
        # Every clip asks another part of the categories, so that all of them get the same number of questions.
        start = (number - seed) * per_video
        tasks = [names[(start + k) % len(names)] for k in range(per_video)]
        asked = [q for k, task in enumerate(tasks) for q in episode.questions(1, rng_seed=k, tasks=[task])]
        queries = sorted((polled(q) for q in asked), key=lambda q: q.ask_time)[:left]
        yield Item(
            video_record(episode, fps=1.0), tuple(queries), lambda fps, e=episode: e.frames(fps=fps, size=(128, 128))
        )
        left, number = left - len(queries), number + 1


def needle(
    limit: int = 100, seed: int = 0, minutes: float = 31.0, back_minutes: float = 30.0, per_video: int = 2
) -> Iterator[Item]:
    """Long streams: what happened in the first minute is asked about half an hour later."""
    left, number = limit, seed
    while left > 0:
        episode = make_episode(number, "test", duration_s=minutes * 60, kind="long")
        until = (minutes - back_minutes) * 60
        asked = _about_the_past(episode, until, episode.duration_s - 1.0, per_video)
        if queries := asked[:left]:
            yield Item(
                video_record(episode, fps=1.0),
                tuple(queries),
                lambda fps, e=episode: e.frames(fps=fps, size=(128, 128)),
            )
        left, number = left - len(queries), number + 1
        if number - seed > 50 * limit:
            raise InputError("the world makes too few such questions", given=f"{limit - left} of {limit}")


def _about_the_past(episode, until_s: float, ask_s: float, most: int) -> list[QueryRecord]:
    """Questions whose evidence lies before `until_s`, asked at `ask_s`."""
    found: dict[str, QueryRecord] = {}
    for attempt in range(24):
        for query in episode.questions(
            8, rng_seed=attempt, tasks=["when", "before", "ever", "order"], between_s=(ask_s - 1, ask_s)
        ):
            if query.evidence and max(end for _, end in query.evidence) <= until_s and query.answer != "no":
                found.setdefault(query.question, query)
        if len(found) >= most:
            break
    return sorted(found.values(), key=lambda q: q.ask_time)[:most]


def polled(query: QueryRecord) -> QueryRecord:
    """A standing request ("tell me when ...") as one yes-or-no question at one of its test points.

    Which of the points is taken depends on the query's name only, so that yes and no come equally often.
    """
    if query.answer_type != "proactive" or not query.test_points:
        return query
    want = "yes" if sum(map(ord, query.id)) % 2 else "no"
    points = [p for p in query.test_points if p["expect"] == want] or list(query.test_points)
    point = points[sum(map(ord, query.id)) // 2 % len(points)]
    return dataclasses.replace(
        query, ask_time=float(point["t"]), answer=str(point["expect"]), answer_type="yesno", options=("yes", "no")
    )
