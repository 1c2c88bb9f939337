"""Whose frame is looked at next, among all streams of a scheduler."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.schedule.RoundRobin`), found on first use, as in the other rooms.
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("schedule", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
