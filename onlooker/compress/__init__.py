"""Fewer visual tokens before the language model."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.compress.STCPruner`) and what their authors share, found on first use: there is
    # no list of methods to edit, and naming the room does not import torch.
    if name in ("best", "check_keep", "num_kept"):
        from onlooker.compress import _keep

        return getattr(_keep, name)
    if name == "Scorer":
        from onlooker.compress._scorer import Scorer

        return Scorer
    if name == "Chain":
        from onlooker.compress._chain import Chain

        return Chain
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("compressor", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
