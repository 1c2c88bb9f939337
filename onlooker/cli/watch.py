"""onlooker watch: the video plays on while questions are typed."""

import json
import queue
import sys
import threading
import time
from typing import Annotated, Literal

import typer

from onlooker.cli import options
from onlooker.cli.app import app, notes
from onlooker.cli.ask import as_dict, clock, explain
from onlooker.cli.sources import open_source
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.engine import Engine, Session

MOST_WAITING = 64


@app.command()
def watch(
    source: options.Source,
    model: options.Model = "pocket-aware",
    encoder: options.Encoder = options.DEFAULTS["encoder"],
    compressor: options.Compressor = options.DEFAULTS["compressor"],
    memory: options.Memory = options.DEFAULTS["memory"],
    fps: options.Fps = 1.0,
    pace: Annotated[
        Literal["real", "max"], typer.Option(help="real: as fast as the video was shot; max: as fast as we can.")
    ] = "real",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Watch SOURCE while you type questions, one a line.

    A line that begins with @SECONDS waits for that moment of the stream: "@12.5 How many stars are there?". End the
    input (Ctrl-D) to let the video run out; the lines that still wait are answered at its end.
    """
    questions = TypedQuestions()
    engine = Engine.from_pretrained(
        model, dtype=dtype, device=device, encoder=encoder, compressor=compressor, memory=memory
    )
    with open_source(source, fps) as opened, engine.open() as session:
        questions.start()
        if not as_json:
            notes.print("watching; type a question and press Enter", style="dim")
        began = time.monotonic()
        for frame in opened.frames:
            if pace == "real":
                _wait(began + frame.time_s, questions, session, as_json)
            _answer_due(questions, session, frame, as_json)
            session.push(frame)
        questions.wait_for_end()
        for _, text in questions.take(float("inf")):
            _say(session, text, as_json)
        for line in opened.warnings():
            notes.print(f"warning: {line}", style="yellow")


class TypedQuestions:
    """Lines from the standard input, read beside the video. At most 64 wait; the reader pauses beyond that."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue(maxsize=MOST_WAITING)
        self._waiting: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, name="onlooker-questions", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._reader.start()

    def wait_for_end(self) -> None:
        """Wait until the input ends, unless a person sits at it: the video is over, nothing new can be asked."""
        if not sys.stdin.isatty():
            while self._reader.is_alive():
                self._collect()
                self._reader.join(0.02)

    def take(self, stream_s: float, immediate: bool = True) -> list[tuple[float, str]]:
        """The questions that are due at this stream time, in the order they are due."""
        self._collect()
        due = [q for q in self._waiting if q[0] <= stream_s and (immediate or q[0] >= 0)]
        self._waiting = [q for q in self._waiting if q not in due]
        return sorted(due, key=lambda q: q[0])

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip():
                self._lines.put(line.strip())

    def _collect(self) -> None:
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                return
            self._waiting.append(_parse(line))


def _parse(line: str) -> tuple[float, str]:
    if not line.startswith("@"):
        return -1.0, line
    moment, _, question = line[1:].partition(" ")
    try:
        return float(moment), question.strip()
    except ValueError:
        raise InputError("a line for later begins with @SECONDS", given=line, do="@12.5 What is there now?") from None


def _wait(until: float, questions: TypedQuestions, session: Session, as_json: bool) -> None:
    """Sleep until a frame is due, answering what is typed meanwhile."""
    while (left := until - time.monotonic()) > 0:
        if session.time_s is not None:
            for _, text in questions.take(-1.0):
                _say(session, text, as_json)
        time.sleep(min(left, 0.05))


def _answer_due(questions: TypedQuestions, session: Session, upcoming: Frame, as_json: bool) -> None:
    """Answer what was asked for a moment before the upcoming frame: it must not see that frame."""
    if session.time_s is not None:
        for _, text in questions.take(upcoming.time_s - 1e-9):
            _say(session, text, as_json)


def _say(session: Session, question: str, as_json: bool) -> None:
    try:
        if as_json:
            answer = session.ask(question)
            print(json.dumps(as_dict(answer, session.stats())), flush=True)
            return
        stream = session.stream(question)
        print(f"[{clock(session.time_s or 0.0)}] {question} ", end="", flush=True)
        for piece in stream:
            print(piece, end="", flush=True)
        print(flush=True)
        notes.print(explain(stream.answer, session.stats())[0], style="dim")
    except InputError as error:
        # A question that cannot be asked must not end the watching.
        notes.print(f"cannot answer: {error}", style="yellow")
