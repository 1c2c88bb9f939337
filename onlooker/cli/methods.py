"""onlooker methods: what can be put in, with every setting."""

import ast
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit, show_table
from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.kinds import KINDS


@app.command()
def methods(
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="Show this method, or that of a file my_method.py, with its settings."),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """List the methods of every kind; name one to see its settings.

    Example: onlooker methods stc_cacher
    """
    if name.endswith(".py"):
        found = [(kind, name) for kind in registry.kinds_in(name)]
    else:
        found = [(kind, known) for kind in KINDS for known in registry.names(kind) if name in ("", known)]
    if not found:
        _refuse(name)
    if as_json:
        emit([_described(kind, known) for kind, known in found])
    elif name:
        for kind, known in found:
            _show_one(_described(kind, known))
    else:
        show_table(["kind", "name", "what it does"], [[kind, known, _caption(kind, known)] for kind, known in found])
        print("\nsettings of one: onlooker methods NAME; use it as --KIND NAME:key=value,...")


def _refuse(name: str) -> None:
    import difflib

    known = [method for kind in KINDS for method in registry.names(kind)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError("there is no method of that name", given=name, do=f"{hint}one of: {', '.join(known)}")


def _caption(kind: str, name: str) -> str:
    """The first line of a method's file, read without importing it: a list needs no torch."""
    spec = importlib.util.find_spec(f"{KINDS[kind].room}.{name}")
    assert spec is not None and spec.origin is not None, name
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def _described(kind: str, name: str) -> dict[str, Any]:
    cls = registry.method_class(kind, name)
    settings = [
        {"name": s.name, "type": s.type, "default": _plain(s.default), "help": s.help} for s in registry.settings(cls)
    ]
    row = {"kind": kind, "name": name, "class": cls.__name__, "caption": registry.caption(cls), "settings": settings}
    return row | {"usage": _usage(name, settings, registry.inner_setting(cls))}


def _show_one(row: dict[str, Any]) -> None:
    print(f"{row['name']} ({row['kind']}): {row['caption']}\n")
    if not row["settings"]:
        print("It has no settings.")
    else:
        lines = [[s["name"], _value(s["default"]), _type(s["type"]), s["help"]] for s in row["settings"]]
        show_table(["setting", "default", "type", "meaning"], lines)
    print(f"\nuse it as: --{row['kind']} {row['usage']}")


def _plain(default: Any) -> Any:
    """A default as JSON can hold it: a method within a method as text."""
    return registry.describe(default) if hasattr(default, "new_state") else default


def _value(default: Any) -> str:
    if isinstance(default, tuple):
        return "+".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


def _type(text: str) -> str:
    """A type as a user would say it: `int | none`, `key | value | hidden`."""
    if text.startswith("Literal["):
        return text.removeprefix("Literal[").rstrip("]").replace("'", "").replace(", ", " | ")
    words = {"None": "none", "float": "number", "int": "whole number", "bool": "true | false", "str": "text"}
    return " | ".join(words.get(part, part) for part in text.split(" | "))


def _usage(name: str, settings: list[dict[str, Any]], inner: str | None) -> str:
    """How it is written with its first settings, a method within it in brackets."""
    shown = [s for s in settings if s["default"] is not None and s["name"] != inner][:2]
    within = next((s["default"] for s in settings if s["name"] == inner), None)
    return (
        name
        + (f"({within})" if within else "")
        + (":" + ",".join(f"{s['name']}={_value(s['default'])}" for s in shown) if shown else "")
    )
