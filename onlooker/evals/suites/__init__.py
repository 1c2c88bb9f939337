"""Pocket World suites, each a small file found by its name."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from onlooker.core.errors import InputError
from onlooker.evals.item import Item


def names() -> list[str]:
    """The suites that exist, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def items(name: str, limit: int, seed: int = 0) -> Iterator[Item]:
    """The first `limit` questions of a suite ("pocketworld-long" and "pocketworld_long" are the same).

    Raises `InputError` for a name that is none and for a limit below 1.
    """
    found = name.replace("-", "_")
    if found not in names():
        raise InputError("there is no such suite", given=name, do=f"one of: {', '.join(names())}")
    if limit < 1:
        raise InputError("a suite needs questions", given=f"limit={limit}", do="use 1 or more")
    return import_module(f"onlooker.evals.suites.{found}").items(limit, seed)
