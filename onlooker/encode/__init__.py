"""Spend less on the vision encoder."""

from typing import Any


def tower_flop(tower: Any) -> float:
    """FLOP of a vision tower's layers on one whole frame (multiply-add = 2); a method's share of it is its `cost`."""
    from onlooker.encode._cost import dense_flop

    return len(tower.layers) * dense_flop(tower)


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.encode.STCCacher`), found on first use: no list to edit, and no torch imported.
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("encoder", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
