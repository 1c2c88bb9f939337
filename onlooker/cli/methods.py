"""onlooker methods: what can be put in, with every setting."""

import json

import typer
from rich.console import Console
from rich.table import Table

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.core import registry


@app.command()
def methods(
    name: str = typer.Argument("", help="Show only this method, with its settings."),
    as_json: options.Json = False,
) -> None:
    """List the methods of every kind; name one to see its settings."""
    rows = [_row(kind, method) for kind in registry.ROOMS for method in registry.names(kind)]
    if name:
        rows = [row for row in rows if row["name"] == name]
        if not rows:
            kinds = "; ".join(f"{kind}: {', '.join(registry.names(kind))}" for kind in registry.ROOMS)
            raise registry.InputError("there is no method of that name", given=name, do=kinds)
    if as_json:
        print(json.dumps(rows))
        return
    console = Console(highlight=False)
    table = Table("kind", "name", "what it does", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["kind"], row["name"], row["caption"])
    console.print(table)
    for row in rows if name else []:
        settings = Table("setting", "type", "default", "meaning", box=None, pad_edge=False)
        for s in row["settings"]:
            settings.add_row(s["name"], s["type"], str(s["default"]), s["help"])
        console.print()
        console.print(settings if row["settings"] else "no settings")
        console.print(f"\nuse it as: --{row['kind']} {_usage(row)}", markup=False)


def _row(kind: str, name: str) -> dict:
    cls = registry.method_class(kind, name)
    return {
        "kind": kind,
        "name": name,
        "class": cls.__name__,
        "caption": registry.caption(cls),
        "settings": [
            {"name": s.name, "type": s.type, "default": s.default, "help": s.help} for s in registry.settings(cls)
        ],
    }


def _usage(row: dict) -> str:
    shown = [s for s in row["settings"] if s["default"] is not None][:2]
    return row["name"] + (":" + ",".join(f"{s['name']}={s['default']}" for s in shown) if shown else "")
