"""Texts that `onlooker watch` writes into the memory: at given times, or as they are typed."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onlooker.cli.output import clock, emit, note, plain
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.core.frame import Frame
    from onlooker.engine import Session

TYPED = "note:"
"""How a typed line begins that is a note."""
_TIMED = re.compile(r"@(\d+(?:\.\d*)?)\s+(\S.*)", re.DOTALL)


class TimedNotes:
    """Notes that wait for their moments."""

    def __init__(self, texts: Sequence[str], as_json: bool, ocr_s: float | None = None) -> None:
        """`ocr_s` is how often pictures are read, in seconds. Raises `InputError` for a text that is not `@SECONDS
        TEXT`, and for reading without the package for it."""
        found = [_TIMED.fullmatch(text.strip()) for text in texts]
        if None in found:
            given = texts[found.index(None)]
            raise InputError("a note is @SECONDS TEXT", given=repr(given[:80]), do='--note "@12.5 a car stopped"')
        self._waiting = sorted((float(match[1]), match[2]) for match in found if match)
        self._as_json, self._lines = as_json, read_lines(ocr_s)

    def look(self, session: "Session", frame: "Frame") -> None:
        """Note what is written in a frame that the session took in, and say what was noted, by whom ever."""
        for line in self._lines(frame):
            session.note(line)
        tell_noted(session, self._as_json)

    def write_before(self, session: "Session", time_s: float) -> None:
        """Write the notes that belong before a stream time."""
        while self._waiting and self._waiting[0][0] < time_s:
            at_s, text = self._waiting.pop(0)
            write_note(session, text, max(at_s, session.now_s), self._as_json)

    def tell_rest(self) -> None:
        """Say which notes the video has not come to."""
        for at_s, text in self._waiting:
            note(f"the video ended before {clock(at_s)}: not noted: {plain(text)}")


def read_lines(every_s: float | None) -> "Callable[[Frame], list[str]]":
    """Gives the new lines that are written in a frame; none at all without a number of seconds."""
    if every_s is None:
        return lambda frame: []
    from onlooker.video.texts import NewLines, Ocr

    return NewLines(Ocr(), every_s).look


def write_note(session: "Session", text: str, time_s: float | None, as_json: bool) -> None:
    """Write a note, and say so. Raises what `Session.note` raises."""
    session.note(text, time_s)
    tell_noted(session, as_json)


def tell_noted(session: "Session", as_json: bool) -> None:
    """Say what was written into the memory since the last call, by whom ever."""
    from onlooker.core.events import Noted

    for event in session.events():
        if not isinstance(event, Noted):
            continue
        if as_json:
            emit({"event": "note", "time_s": event.time_s, "kind": event.kind, "text": event.text})
        else:
            word = "THINKS" if event.kind == "thought" else "NOTED"
            print(f"[{clock(event.time_s)}] {word} {plain(event.text)}", flush=True)
