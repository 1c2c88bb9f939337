"""What is written down while a stream is watched. Contract: `core/contracts/think.py`."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.think.VST`), found on first use: there is no list of methods to edit.
    from onlooker.core import registry

    if name == "Segments":
        from onlooker.think import _segments

        return _segments.Segments
    if name[0].isupper() and (found := registry.class_named("think", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
