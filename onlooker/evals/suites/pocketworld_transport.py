"""Questions of level L2 behind a bad line: frozen, missing and repeated pictures, and encodes of 200 kbit/s.

Each clip goes through one of them. Asked are the questions whose evidence came through whole, and, of clips that freeze
and of those that do not, whether the picture is frozen: at a time at which it is or is not, equally likely.
"""

import dataclasses
import random
from collections.abc import Iterator

from onlooker.core.records import QueryRecord
from onlooker.evals.item import Item
from onlooker.evals.suites import pocketworld
from onlooker.evals.suites._episodes import SIDE, as_item
from onlooker.world import Episode
from onlooker.world.lexicon import YES_NO
from onlooker.world.transport import Transport

LEVEL, KINDS = "L2", ("frozen", "dropped", "repeated", "encoded")
KILOBITS, LEAST_S, NOTICE_S = 200, 4.0, 2.2
"""Kilobits a second of an encode, the shortest freeze, and how long a freeze has lasted when it is asked about."""
CODED_SIDE = 256
"""Pixels across of what is encoded: at 128 so many kilobits would spoil little."""


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """`limit` questions, the kinds of trouble in turn."""
    left, place = limit, 0
    while left > 0:
        episode, queries = pocketworld.clip(seed + place, place, LEVEL)
        kind, rng = KINDS[place % len(KINDS)], random.Random(f"transport/{episode.id}")
        way = _way(kind, rng, episode.duration_s)
        asked = [query for query in queries if not any(way.spoils(span) for span in _needed(query))]
        asked = [
            dataclasses.replace(q, meta=q.meta | {"transport": kind}) for q in (*asked, *_frozen(rng, episode, way))
        ]
        if asked := sorted(asked, key=lambda query: query.ask_time)[:left]:
            item = as_item(episode, asked, "pocketworld_transport")
            yield dataclasses.replace(item, open=_opener(episode, way))
        left, place = left - len(asked), place + 1


def _opener(episode: Episode, way: Transport):
    side = CODED_SIDE if way.kilobits else SIDE
    return lambda fps: way.carry(episode.frames(fps=fps, size=(side, side)), fps)


def _way(kind: str, rng: random.Random, seconds: float) -> Transport:
    start = rng.uniform(4.0, seconds - LEAST_S - 6.0)
    span = ((round(start, 3), round(start + rng.uniform(LEAST_S, LEAST_S + 4.0), 3)),)
    if kind == "frozen":
        return Transport(frozen=span)
    if kind == "dropped":
        return Transport(dropped=span)
    return Transport(repeat=2) if kind == "repeated" else Transport(kilobits=KILOBITS)


def _needed(query: QueryRecord) -> list[tuple[float, float]]:
    """The seconds that must have come through: the evidence, the moments of asking and polling, windows."""
    times = [float(point["t"]) for point in query.test_points] or [query.ask_time]
    # A count so far, or "ever", rests on all that was.
    whole = [(0.0, query.ask_time)] if query.task in ("since", "ever", "repetition", "order", "before") else []
    return [*query.evidence, *query.windows, *((at - 1.3, at) for at in times), *whole]


def _frozen(rng: random.Random, episode: Episode, way: Transport) -> list[QueryRecord]:
    """Whether the picture is frozen now; of a clip in which nothing is missing or doubled, and of half of those that
    freeze, the answer is no."""
    if way.dropped or way.repeat > 1:
        return []
    yes = bool(way.frozen) and rng.random() < 0.9
    if yes:
        start, end = way.frozen[0]
        at = rng.uniform(start + NOTICE_S, end)
    else:
        free = way.frozen[0][0] if way.frozen else episode.duration_s - 1.0
        at = rng.uniform(3.0, free)
    return [
        QueryRecord(
            id=f"{episode.id}-frozen", video=episode.id, benchmark="pocketworld_transport", task="frozen",
            family="realtime", ask_time=round(at, 3), question="is the picture frozen now?",
            answer="yes" if yes else "no", answer_type="yesno", options=YES_NO,
            evidence=((round(at - NOTICE_S, 3), round(at, 3)),), meta={"form": "frozen", "level": LEVEL},
        )
    ]  # fmt: skip
