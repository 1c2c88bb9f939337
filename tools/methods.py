"""Writes the page of all methods: what each is, where it comes from, what differs, and its settings."""

import inspect
import sys
from pathlib import Path

from onlooker.core import registry
from onlooker.core.kinds import KINDS
from onlooker.core.systems import listed

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """# Methods

Made by `python tools/methods.py --write` from the files of the methods; `make check` fails when it is stale. On the
command line: `onlooker methods`, `onlooker methods NAME`. How to write one: [adding a method](adding_a_method.md).
"""


def page() -> str:
    """The whole page."""
    names = {system.key: system.name for system in listed()}
    parts = [HEAD]
    for kind, one in KINDS.items():
        chosen = f"`{one.chosen}`" if one.chosen else f'`--{kind} NAME` or `{kind}="NAME"`'
        parts.append(f"## {kind.capitalize()}\n\nIn `onlooker/{one.folder}/`; chosen by {chosen}.\n")
        parts += [_section(kind, name, names) for name in registry.names(kind)]
    return "\n".join(parts)


def _section(kind: str, name: str, systems: dict[str, str]) -> str:
    cls = registry.method_class(kind, name)
    caption, _, rest = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "").partition("\n")
    lines = [f"### `{name}`\n", f"{caption}\n"]
    if rest.strip():
        lines.append(f"{rest.strip()}\n")
    if about := inspect.getdoc(cls):
        lines.append(f"{about}\n")
    if cls.realises:
        stands = ", ".join(systems[key] for key in cls.realises)
        lines.append(f"Stands for: {stands} ([status and proof](systems.md)).\n")
    if settings := registry.settings(cls):
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{one.name}` | {_value(one.default)} | {one.help.replace('|', chr(92) + '|')} |" for one in settings
        ]
        lines.append("")
    return "\n".join(lines)


def _value(default: object) -> str:
    if hasattr(default, "new_state"):  # a method within the method
        default = registry.describe(default)
    return "none" if default is None else f"`{default}`"


def main() -> None:
    """`--write` brings the page up to date; otherwise fail when it is stale."""
    text = page()
    if "--write" in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/methods.md is stale: run make format")
    print("page of methods up to date")


if __name__ == "__main__":
    main()
