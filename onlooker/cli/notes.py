"""Texts that `onlooker watch` writes into the memory: at given times, or as they are typed."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onlooker.cli.output import clock, emit, note, plain
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.core.frame import Frame
    from onlooker.engine import Session
    from onlooker.video.speech import SpokenSoFar

TYPED = "note:"
"""How a typed line begins that is a note."""
_TIMED = re.compile(r"@(\d+(?:\.\d*)?)\s+(\S.*)", re.DOTALL)


class TimedNotes:
    """Notes that wait for their moments."""

    def __init__(
        self, texts: Sequence[str], as_json: bool, ocr_s: float | None = None, spoken: "SpokenSoFar | None" = None
    ) -> None:
        """`ocr_s` is how often pictures are read, in seconds; `spoken` is what is said in the file. Raises `InputError`
        for a text that is not `@SECONDS TEXT`, and for reading without the package for it."""
        found = [_TIMED.fullmatch(text.strip()) for text in texts]
        if None in found:
            given = texts[found.index(None)]
            raise InputError("a note is @SECONDS TEXT", given=repr(given[:80]), do='--note "@12.5 a car stopped"')
        self._waiting = sorted((float(match[1]), match[2]) for match in found if match)
        self._as_json, self._lines, self._spoken = as_json, read_lines(ocr_s), spoken

    def look(self, session: "Session", frame: "Frame") -> None:
        """Note what is written in a frame that the session took in, and say what was noted, by whom ever."""
        for line in self._lines(frame):
            session.note(line)
        tell_noted(session, self._as_json)

    def write_before(self, session: "Session", time_s: float) -> None:
        """Write the notes that belong before a stream time, and what has been said by then."""
        for one in self._spoken.until(time_s) if self._spoken is not None else ():
            session.note(one.text, max(one.end_s, session.now_s), "speech")
            tell_noted(session, self._as_json)
        while self._waiting and self._waiting[0][0] < time_s:
            at_s, text = self._waiting.pop(0)
            write_note(session, text, max(at_s, session.now_s), self._as_json)

    def tell_rest(self) -> None:
        """Say which notes the video has not come to."""
        for at_s, text in self._waiting:
            note(f"the video ended before {clock(at_s)}: not noted: {plain(text)}")
        for one in self._spoken.rest() if self._spoken is not None else ():
            note(f"the video ended before {clock(one.end_s)}: not noted: {plain(one.text)}")


def read_lines(every_s: float | None) -> "Callable[[Frame], list[str]]":
    """Gives the new lines that are written in a frame; none at all without a number of seconds."""
    if every_s is None:
        return lambda frame: []
    from onlooker.video.texts import NewLines, Ocr

    return NewLines(Ocr(), every_s).look


def read_speech(source: str, model: str | None) -> "SpokenSoFar | None":
    """What is said in a file, by a speech model of this name; None without one. Raises `InputError` for a source that
    is no file, a file without sound, and without the package for it."""
    if model is None:
        return None
    from onlooker.video.speech import SpokenSoFar, Whisper

    file = Path(source).expanduser()
    if not file.is_file():
        raise InputError("speech is read from files only", given=source, do="leave --speech out, or write notes")
    return SpokenSoFar(Whisper(model), file)


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
