"""Fewer visual tokens before the language model."""

import importlib
from typing import Any

_SHARED = {
    **dict.fromkeys(("Budgeted", "best", "check_keep", "num_kept"), "_keep"),
    **dict.fromkeys(("Batched", "alike", "among_best", "in_steps", "selected", "stacked"), "_batching"),
    **dict.fromkeys(("ClipMethod", "ClipState", "SteppedWindows", "WindowMethod"), "_clip"),
    **dict.fromkeys(("Scorer", "SteppedScorer"), "_scorer"),
    **dict.fromkeys(("Kept", "Stepped", "chosen", "masked"), "_steps"),
    "Chain": "_chain",
}
"""What authors of methods share, and where it is."""


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.compress.STCPruner`) and what their authors share, found on first use: there is
    # no list of methods to edit, and naming the room does not import torch.
    if name in _SHARED:
        return getattr(importlib.import_module(f"onlooker.compress.{_SHARED[name]}"), name)
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("compressor", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
