"""Files and functions of the package stay small enough to be read at once."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "onlooker"
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_METHOD_LINES = 400, 80, 120

EXCEPTIONS: dict[str, int] = {}
"""What is longer, and how long it may be. A number may get smaller, and a line may go; none may come or grow."""


def lengths() -> dict[str, tuple[int, int]]:
    """Lines of every file and function, and the most it may have."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")
        found[name] = len(text.splitlines()), MOST_FILE_LINES
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                place = f"{name} {node.name}"
                lines = node.end_lineno - node.lineno + 1
                found[place] = max(lines, found.get(place, (0, 0))[0]), MOST_FUNCTION_LINES
    return found


def test_files_and_functions_are_short() -> None:
    known = lengths()
    too_long = {place: lines for place, (lines, most) in known.items() if lines > EXCEPTIONS.get(place, most)}
    assert not too_long, f"cut along its ideas: {too_long}"


def test_a_method_that_spends_less_is_one_small_file() -> None:
    """Compressors, gates and refiners: one file each, which is read in one go."""
    paths = [path for room in ("compress", "gate", "refine") for path in (PACKAGE / room).glob("[!_]*.py")]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lines) > 30 and not {name: count for name, count in lines.items() if count > MOST_METHOD_LINES}


def test_exceptions_shrink() -> None:
    known = lengths()
    for place, most in EXCEPTIONS.items():
        lines, limit = known.get(place, (0, 0))
        assert limit < lines <= most, f"{place} has {lines} lines; of {most} allowed: take it off the list, or cut it"
