"""A saved session goes on, on an engine made for it."""

from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError
from onlooker.engine.engine import Engine
from onlooker.engine.files import read
from onlooker.engine.session import Session


def load(folder: str | Path, **settings: Any) -> Session:
    """A session that goes on where `Session.save` left it, on an engine of its own: the same model and methods.

    `settings` are those of `Engine.from_pretrained` beyond the methods: `device`, budgets, `kv`, `passes`. To go on on
    an engine that is there already: `engine.load(read(folder))`. Raises `InputError` for a folder without a session or
    with a damaged one, `ModelError` when its model cannot be loaded.
    """
    saved = read(folder)
    about = saved.facts.get("made_by")
    if not isinstance(about, dict) or not isinstance(about.get("methods"), dict):
        raise InputError("a saved session does not say what made it", given=str(about)[:120], do="begin a new one")
    engine = Engine.from_pretrained(
        str(about.get("model")), **{"dtype": about.get("dtype")} | about["methods"] | settings
    )
    return engine.load(saved)
