"""Which worker gets what: one that has the bytes for it, and of those the one whose engine is asked least, as measured.

Workers say of themselves (`/readyz`) what bytes their sessions hold and may hold, and what share of their engine's time
streams and questions ask for. What a further stream will take is what those that are there take in the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEP = 0.1
"""Shares of an engine's time that differ by less than this are the same: then whoever has fewer sessions is next."""


@dataclass(frozen=True)
class Need:
    """What a stream takes of a worker."""

    memory_bytes: float = 0.0
    load: float = 0.0
    """Share of the engine's time."""


def need_of(*workers: Mapping[str, Any]) -> Need:
    """What a stream of these workers takes in the mean, by what they tell of themselves; nothing where none has any."""
    sessions = sum(told.get("sessions", 0) for told in workers)
    if not sessions:
        return Need()
    held = sum(told.get("memory_bytes", 0) for told in workers)
    return Need(held / sessions, sum(told.get("load", 0.0) for told in workers) / sessions)


def has_room(told: Mapping[str, Any], need: Need) -> bool:
    """Whether a worker has the bytes for one more stream."""
    most = told.get("memory_limit_bytes")
    return most is None or told.get("memory_bytes", 0) + need.memory_bytes <= most


def rank(told: Mapping[str, Any]) -> tuple[bool, int, int]:
    """Orders workers, whoever is next first."""
    work = told.get("sessions", 0) + told.get("questions", 0)
    return not has_room(told, need_of(told)), round(told.get("load", 0.0) / STEP), work


def with_one_more(told: Mapping[str, Any], need: Need) -> dict[str, Any]:
    """What a worker will tell once it has one more stream."""
    return dict(told) | {
        "sessions": told.get("sessions", 0) + 1,
        "memory_bytes": told.get("memory_bytes", 0) + need.memory_bytes,
        "load": told.get("load", 0.0) + need.load,
    }


def deal(count: int, need: Need, workers: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Deal out so many streams of one kind: the number of the worker that gets each, None where none has the bytes."""
    told, given = [dict(one) for one in workers], list[int | None]()
    for _ in range(count):
        able = [number for number, one in enumerate(told) if has_room(one, need)]
        best = min(able, key=lambda number: rank(told[number]), default=None)
        if best is not None:
            told[best] = with_one_more(told[best], need)
        given.append(best)
    return given
