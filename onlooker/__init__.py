"""Onlooker watches video as it arrives and answers at any moment."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onlooker.core.errors import OnlookerError
    from onlooker.core.events import Answer
    from onlooker.core.frame import Frame
    from onlooker.engine import Engine, Session
    from onlooker.engine.going_on import load
    from onlooker.video import open_video

__version__ = "0.2.0"

# Names are looked up when first used, so that `import onlooker` is quick and needs no torch.
_HOMES = {
    "Answer": "onlooker.core.events",
    "Engine": "onlooker.engine",
    "Frame": "onlooker.core.frame",
    "OnlookerError": "onlooker.core.errors",
    "Session": "onlooker.engine",
    "load": "onlooker.engine.going_on",
    "open_video": "onlooker.video",
}
_ROOMS = ("compress", "encode", "gate", "memory", "models", "refine", "respond", "schedule", "video", "world")

__all__ = ["Answer", "Engine", "Frame", "OnlookerError", "Session", "load", "open_video"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"onlooker.{name}")
    raise AttributeError(f"module 'onlooker' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
