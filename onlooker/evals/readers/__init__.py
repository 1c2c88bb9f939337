"""Published benchmarks, each a small file found by its name: annotation format, strict and published scorer."""

import pkgutil
from importlib import import_module
from pathlib import Path

from onlooker.core.errors import InputError
from onlooker.evals.item import Reading


def names() -> list[str]:
    """The benchmarks that can be read, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def read(name: str, annotations: str | Path, videos: str | Path) -> Reading:
    """A benchmark from its annotation file (or folder) and a folder of videos.

    Raises `InputError` for an unknown benchmark and for annotations that are no such file at all. Single bad rows,
    missing videos and files that end before a question are listed in the result instead.
    """
    if name not in names():
        raise InputError("there is no reader for such a benchmark", given=name, do=f"one of: {', '.join(names())}")
    if not Path(annotations).exists():
        raise InputError("there is no such annotation file", given=str(annotations), do="give its path")
    return import_module(f"onlooker.evals.readers.{name}").BENCHMARK.read(Path(annotations), Path(videos))
