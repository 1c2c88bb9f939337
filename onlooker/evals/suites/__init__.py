"""Pocket World suites, each a small file found by its name."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from onlooker.core.errors import InputError
from onlooker.evals.item import Item
from onlooker.world.levels import LEVEL_NAMES

LEVELLED = ("pocketworld", "pocketworld_stories")
"""Suites that are asked at a level."""


def names() -> list[str]:
    """The suites that exist, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def items(name: str, limit: int, seed: int = 0, level: str = "L0") -> Iterator[Item]:
    """The first `limit` questions of a suite ("pocketworld-long" and "pocketworld_long" are the same).

    `level` L1 to L4 is a harder world, for the suites in `LEVELLED`. Raises `InputError` for a name that is none, a
    limit below 1, and a level that there is not.
    """
    found = name.replace("-", "_")
    if found not in names():
        raise InputError("there is no such suite", given=name, do=f"one of: {', '.join(names())}")
    if limit < 1:
        raise InputError("a suite needs questions", given=f"limit={limit}", do="use 1 or more")
    if level not in LEVEL_NAMES:
        raise InputError("there is no such level", given=level, do=f"one of: {', '.join(LEVEL_NAMES)}")
    suite = import_module(f"onlooker.evals.suites.{found}")
    if level == "L0":
        return suite.items(limit, seed)
    if found not in LEVELLED:
        do = f"{', '.join(LEVELLED)}, or leave the level out"
        raise InputError("this suite has no levels", given=f"{name} at {level}", do=do)
    return suite.items(limit, seed, level=level)
