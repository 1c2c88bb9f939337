"""Writes the README's lists from the captions in the code, and checks that every file has one."""

import ast
import re
import sys
from pathlib import Path

from onlooker.core import registry
from onlooker.core.kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def caption(path: Path) -> str | None:
    """The first line of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return text.splitlines()[0] if text else None


def tree() -> str:
    """The rooms of the package with their captions."""
    rooms = sorted(p.parent for p in (ROOT / "onlooker").glob("*/__init__.py"))
    width = max(len(room.name) for room in rooms) + 3
    lines = [f"{room.name + '/':<{width}}{caption(room / '__init__.py')}" for room in rooms]
    return "```\n" + "\n".join(lines) + "\n```"


def methods() -> str:
    """Every kind with the caption of its room and the names of its methods; what each does is in docs/methods.md."""
    lines = ["| kind | what it is | methods |", "|---|---|---|"]
    for name, kind in KINDS.items():
        room = caption(ROOT / "onlooker" / kind.folder / "__init__.py") or ""
        said = re.sub(r"\.? Contract: .*", ".", room)
        listed = ", ".join(f"`{method}`" for method in registry.names(name))
        lines.append(f"| {name} | {said} | {listed} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """The README with its generated parts made anew."""
    for name, make in (("tree", tree), ("methods", methods)):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if not re.search(pattern, text, flags=re.DOTALL):
            sys.exit(f"README.md has no place for {name}: add <!-- {name} --> and <!-- /{name} -->")
        text = re.sub(pattern, lambda found, m=make: f"{found[1]}{m()}\n{found[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    """`--check` fails when something is missing or stale; `--write` brings the README up to date."""
    folders = ("onlooker", "recipes", "benchmarks", "examples", "tools")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    bare = [str(path.relative_to(ROOT)) for path in files if not caption(path)]
    if bare:
        sys.exit("files without a caption (first docstring line): " + ", ".join(bare))
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if "--write" in sys.argv:
        README.write_text(new, encoding="utf-8")
    elif old != new:
        sys.exit("README.md is stale: run make format")
    print(f"{len(files)} captions, README up to date")


if __name__ == "__main__":
    main()
