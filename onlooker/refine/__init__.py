"""What a question sees of what the memory recalled, by its own words. Contract: `core/contracts/refine.py`."""

from typing import Any

from onlooker.refine._budget import allowed, best_rows, check_budget, early

__all__ = ["allowed", "best_rows", "check_budget", "early"]


def __getattr__(name: str) -> Any:
    # Methods by class name (`onlooker.refine.FastV`), found on first use: there is no list of methods to edit.
    from onlooker.core import registry

    if name[0].isupper() and (found := registry.class_named("refiner", name)):
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
