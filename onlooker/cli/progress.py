"""What a command says while it works, on the error stream: a bar at a terminal, lines of JSON where they are wanted."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from onlooker.cli.output import note, notes

How = Literal["auto", "json", "none"]
JSON_EVERY_S, LINE_EVERY_S = 0.5, 30.0
"""The least time between two lines of JSON, and between two lines for a log."""
LONG_S = 5.0
"""Where there is no terminal, loading that takes longer than this is told of."""


class Step:
    """One thing a command does, and how far it is: `done` of `total` (None where that is not known)."""

    def __init__(self, what: str, unit: str, total: int | None, tell: "Callable[[Step], None]") -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self._tell = tell

    def advance(self) -> None:
        """One more is done."""
        self.to(self.done + 1)

    def to(self, done: int, what: str | None = None) -> None:
        """So many are done; `what` is a new name for what is being done."""
        self.done, self.what = done, what or self.what
        self._tell(self)


class Working:
    """How a command shows that it works: `auto` is a bar at a terminal, now and then a line in a log, nothing beside
    JSON; `json` is lines of JSON on the error stream; `none` is nothing."""

    def __init__(self, how: How, as_json: bool) -> None:
        self._as_json = how == "json"
        self._shows = how == "auto" and not as_json

    @property
    def draws(self) -> bool:
        """Whether a bar is drawn, which lines of other kinds would break."""
        return self._shows and notes.is_terminal

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """While a model, or what it needs, is being loaded."""
        with self.counting(f"loading {model}", "", None):
            if not self._shows or notes.is_terminal:
                yield
                return
            later = threading.Timer(LONG_S, note, [f"loading {model}"])
            later.daemon = True
            later.start()
            try:
                yield
            finally:
                later.cancel()
                later.join()

    @contextmanager
    def counting(self, what: str, unit: str, total: int | None) -> Iterator[Step]:
        """While something is done that can be counted in `unit`s; without a unit, it just lasts."""
        if self._as_json:
            teller = _Lines(JSON_EVERY_S, _json_line)
        elif self._shows and not notes.is_terminal:
            teller = _Lines(LINE_EVERY_S, _plain_line)
        elif self._shows:
            with _Bar(bool(unit), unit) as bar:
                step = Step(what, unit, total, bar.tell)
                bar.tell(step)
                yield step
            return
        else:
            yield Step(what, unit, total, lambda step: None)
            return
        step = Step(what, unit, total, teller.tell)
        teller.begin(step, at_once=self._as_json)
        yield step
        teller.end(step, at_once=self._as_json)


class _Lines:
    """A line now and then."""

    def __init__(self, every_s: float, write: Callable[[Step, float], None]) -> None:
        self._every_s, self._write = every_s, write
        self._began = self._told = time.monotonic()

    def begin(self, step: Step, at_once: bool) -> None:
        if at_once:
            self._write(step, 0.0)

    def tell(self, step: Step) -> None:
        now = time.monotonic()
        if now - self._told >= self._every_s:
            self._told = now
            self._write(step, now - self._began)

    def end(self, step: Step, at_once: bool) -> None:
        if at_once:
            self._write(step, time.monotonic() - self._began)


def _json_line(step: Step, elapsed_s: float) -> None:
    row = {"event": "progress", "doing": step.what, "done": step.done, "total": step.total, "unit": step.unit or None}
    print(json.dumps(row | {"elapsed_s": round(elapsed_s, 3)}), file=sys.stderr, flush=True)


def _plain_line(step: Step, elapsed_s: float) -> None:
    if step.unit:
        of = "" if step.total is None else f" of {step.total}"
        note(f"{step.what}: {step.done}{of} {step.unit} after {elapsed_s:.0f} s")


class _Bar:
    """A bar that is gone when all is done."""

    def __init__(self, counts: bool, unit: str) -> None:
        columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
        columns += [BarColumn(), MofNCompleteColumn(), TextColumn(unit)] if counts else []
        self._progress = Progress(*columns, TimeElapsedColumn(), console=notes, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def tell(self, step: Step) -> None:
        if self._task is None:
            self._task = self._progress.add_task(step.what, total=step.total)
        self._progress.update(self._task, description=step.what, completed=step.done)
