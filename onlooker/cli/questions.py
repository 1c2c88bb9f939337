"""Questions typed while a video runs: lines of an input, perhaps each for its own moment."""

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

MOST_WAITING = 64
NOW, AT_THE_END = -1.0, math.inf


@dataclass(frozen=True)
class TimedQuestion:
    """What is asked, and for which moment of the stream: seconds, `NOW` or `AT_THE_END`."""

    at_s: float
    text: str


class TypedQuestions:
    """Lines of an input, read beside the video (at most 64 wait; the reader pauses beyond that) or all before it.

    A line `@SECONDS question` is for that moment. A line that cannot be understood becomes a complaint; it never stops
    the others. An input that is closed (None) asks nothing.
    """

    def __init__(self, lines: TextIO | None) -> None:
        self._input = lines
        self._lines: queue.Queue[str] = queue.Queue(maxsize=MOST_WAITING)
        self._waiting: list[TimedQuestion] = []
        self._complaints: list[str] = []
        self._reader = threading.Thread(target=self._read, name="onlooker-questions", daemon=True)

    def start(self) -> None:
        """Begin to read beside the video; lines without a time are for the moment they are typed."""
        if self._input is not None:
            self._reader.start()

    def read_all(self) -> None:
        """Read to the end of the input; lines without a time are for the end of the video."""
        for line in [] if self._input is None else _lines_of(self._input):
            self._add(line, AT_THE_END)

    def wait_for_end(self, meanwhile: Callable[[], None]) -> None:
        """The video is over: go on answering until the input ends."""
        while self._reader.is_alive():
            meanwhile()
            time.sleep(0.02)
        meanwhile()

    def take(self, until_s: float) -> list[TimedQuestion]:
        """The questions for moments up to this one, in the order of their moments."""
        while not self._lines.empty():
            self._add(self._lines.get_nowait(), NOW)
        due = [question for question in self._waiting if question.at_s <= until_s]
        self._waiting = [question for question in self._waiting if question.at_s > until_s]
        return sorted(due, key=lambda question: question.at_s)

    def complaints(self) -> list[str]:
        """Lines that were not understood, since the last call."""
        found, self._complaints = self._complaints, []
        return found

    def _read(self) -> None:
        assert self._input is not None
        for line in _lines_of(self._input):
            self._lines.put(line)

    def _add(self, line: str, otherwise: float) -> None:
        line = line.strip()
        if not line.startswith("@"):
            if line:
                self._waiting.append(TimedQuestion(otherwise, line))
            return
        moment, _, text = line[1:].partition(" ")
        try:
            at_s = float(moment)
        except ValueError:
            at_s = math.nan
        if not (math.isfinite(at_s) and at_s >= 0 and text.strip()):
            self._complaints.append(f"cannot read {line!r}: a line for later is @SECONDS and a question")
            return
        self._waiting.append(TimedQuestion(at_s, text.strip()))


def _lines_of(source: TextIO) -> Iterator[str]:
    """The lines of an input, whatever bytes are in them.

    Read from the descriptor itself where there is one: a thread that waits inside the interpreter's own buffered
    input cannot be left behind when the program ends.
    """
    try:
        number = source.fileno()
    except (OSError, ValueError):
        yield from source
        return
    rest = b""
    while block := os.read(number, 1 << 16):
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
    yield rest.decode("utf-8", "replace")
