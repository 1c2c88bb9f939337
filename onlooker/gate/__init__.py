"""Which frames are worth the vision tower's work."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.gate.StillSkip`), found on first use, as in the other rooms.
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("gate", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
