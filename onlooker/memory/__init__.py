"""What the language model remembers of the stream."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.memory.ReKV`), found on first use: there is no list of methods to edit, and
    # naming the room does not import torch.
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("memory", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
