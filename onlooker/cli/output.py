"""What the commands print: results on the standard output, everything else on the error stream."""

import json
import math
from typing import Any

from rich.console import Console
from rich.table import Table

WIDEST = 120
"""Columns of a table in a wide terminal, and where there is no terminal."""

notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
"""For people: progress, notes, warnings. Never parsed by a program."""


def warn(line: str) -> None:
    """Say what went wrong without stopping."""
    notes.print(f"warning: {line}", style="yellow")


def note(line: str) -> None:
    """Say what is good to know."""
    notes.print(line, style="dim")


def emit(thing: dict[str, Any] | list[Any]) -> None:
    """Print one line of JSON at once; numbers that JSON lacks (nan, inf) become null."""
    print(json.dumps(sound(thing), allow_nan=False), flush=True)


def show_table(headers: list[str], rows: list[list[str]], numbers: bool = False) -> None:
    """Print columns under headers, as wide as the terminal. With `numbers`, all columns but the first align right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if numbers and place else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console = Console(highlight=False, width=min(console.width, WIDEST) if console.is_terminal else WIDEST)
    with console.capture() as captured:
        console.print(table)
    # Cells are padded to the width of their column: without this every line would end in blanks.
    print("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def plain(text: str) -> str:
    """A model's words as they may go to a terminal: control characters, which could rewrite it, are replaced."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)


def clock(seconds: float) -> str:
    """Seconds as people read them: 0:07, 12:30, 1:02:03."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size_text(num_bytes: float) -> str:
    """Bytes as people read them: 512 B, 3.4 MiB, 2.0 GiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def sound(thing: Any) -> Any:
    """The same with null for the numbers that JSON lacks (nan, inf)."""
    if isinstance(thing, dict):
        return {key: sound(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [sound(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing
