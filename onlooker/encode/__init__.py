"""Spend less on the vision encoder."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.encode.STCCacher`), found on first use: no list to edit, and no torch imported.
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("encoder", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
