"""What a question sees of what the memory recalled, by its own words. Contract: `core/contracts/refine.py`."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.refine.FastV`) and what their authors share, found on first use: there is no list
    # of methods to edit, and naming the room does not import torch.
    if name in ("allowed", "best_rows", "check_budget", "early"):
        from onlooker.refine import _budget

        return getattr(_budget, name)
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("refiner", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
