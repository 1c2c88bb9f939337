"""onlooker watch: the video plays on while questions are typed."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onlooker.cli import alerts, options
from onlooker.cli.app import app
from onlooker.cli.ask import as_dict, explain
from onlooker.cli.notes import TYPED, TimedNotes, read_speech, write_note
from onlooker.cli.output import clock, emit, note, plain, size_text, warn
from onlooker.cli.progress import Working
from onlooker.cli.questions import AT_THE_END, NOW, TimedQuestion, TypedQuestions
from onlooker.cli.sources import Opened, Reading, hears_codec, open_source, stranger
from onlooker.core.errors import InputError, SourceError
from onlooker.core.frame import Frame

if TYPE_CHECKING:
    from onlooker.engine import Session
    from onlooker.video import LiveSource

LOOK_S = 0.05
"""How often the typed questions are looked at while no frame comes."""


Notes = Annotated[
    list[str] | None,
    typer.Option(
        "--note",
        metavar="'@12 TEXT'",
        help="Write a text into the memory at that second of the stream. May be given many times.",
    ),
]
Pace = Annotated[
    Literal["real", "max"], typer.Option(help="real: as fast as the video was shot; max: as fast as we can.")
]
Ocr = Annotated[
    float | None,
    typer.Option(
        "--ocr",
        metavar="SECONDS",
        help="Read what is written in the picture, so often, into the memory: needs onlooker\\[ocr].",
        min=0,
    ),
]
Speech = Annotated[
    str | None,
    typer.Option(
        "--speech",
        metavar="MODEL",
        help="Read what is said in the file, such as with [bold]base[/], into the memory: needs onlooker\\[speech].",
    ),
]


@app.command()
@options.takes_methods()
def watch(
    source: options.Source,
    pace: Pace = "real",
    fps: options.Fps = 1.0,
    strict: options.Strict = False,
    stream: options.Stream = None,
    rate: options.Rate = None,
    live: options.Live = None,
    rule: alerts.RuleTexts = None,
    rules: alerts.RulesFile = None,
    webhook: alerts.WebhookUrl = None,
    webhook_secret_file: alerts.SecretFile = None,
    evidence: alerts.EvidenceFolder = None,
    response: alerts.Response = None,
    scores: alerts.Scores = False,
    notes: Notes = None,
    ocr: Ocr = None,
    speech: Speech = None,
    as_json: options.Json = False,
    progress: options.Progress = "auto",
    model: options.Model = "pocket-aware",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    pairs: options.Pairs = None,
    prefix: options.Prefix = None,
    methods: Any = None,
    device_budget: options.DeviceBudget = None,
    host_budget: options.HostBudget = None,
    kv: options.KV = "",
    disk: options.Disk = "",
    arithmetic: options.Arithmetic = "model",
) -> None:
    """Watch SOURCE while you type questions, one a line, and tell when a rule's condition comes true.

    Example: onlooker watch synthetic:4

    Example: onlooker watch synthetic:1 --rule "heart: say yes when you see a blue heart."

    Example: onlooker watch synthetic:2 --rule "tell: what is there now?; policy=sved,then=answer" --scores

    A line "@12.5 how many stars are there?" waits for that second of the stream. End the input (Ctrl-D) when you have
    no more questions: the video runs out, and what still waits is answered at its end.

    A line "note: TEXT" is written into the memory, as --note does at a given second; questions see and cite it.
    With --pace max all lines are read first; those without a time are answered at the end of the video.
    With --json every answer, alert and note (with --scores every look of a rule) is one line, the summary too.
    """
    _check_source(source)
    settings = options.engine_settings(methods, device_budget, host_budget, kv, arithmetic, disk)
    standing = alerts.AlertOptions.of(rule, rules, webhook, webhook_secret_file, evidence, response, scores)
    timed = TimedNotes(notes or (), as_json, ocr, read_speech(source, speech))
    working = Working(progress, as_json)
    with working.loading(model):
        from onlooker.engine import Engine
    with open_source(source, fps, strict=strict, reading=Reading(stream, rate, live, hears_codec(methods))) as opened:
        strange = _told_stranger(model, source, as_json)
        with working.loading(model):
            engine = Engine.from_pretrained(model, dtype=dtype, device=device, pairs=pairs, **settings)
        with engine.open() as session, standing.on(session, opened.name, as_json) as watching:
            options.write_prefixes(session, prefix)
            talk = _Talk(session, typed := _typed(pace), fps, as_json, opened.live)
            began, behind_s = time.monotonic(), 0.0
            with contextlib.closing(talk.frames_of(opened)) as frames:
                for frame in frames:
                    if pace == "real" and not opened.is_live:
                        behind_s = max(0.0, time.monotonic() - began - frame.time_s)
                        talk.wait_until(began + frame.time_s)
                    talk.answer_before(frame)
                    timed.write_before(session, frame.time_s)
                    watching.look(frame, session.push(frame))
                    timed.look(session, frame)
            if session.time_s is None:
                raise SourceError("the source showed no frame", given=source, do="check it, and --fps")
            if pace == "real":
                _ask_on(typed, talk)
            timed.write_before(session, (session.time_s or 0.0) + 1 / fps)
            timed.tell_rest()
            talk.answer_rest()
            _sum_up(session, opened, watching, behind_s, strange if as_json else None)


def _ask_on(typed: TypedQuestions, talk: "_Talk") -> None:
    """Answer what is typed once the video has ended."""
    _tell_at_terminal("the video has ended; ask on, or press Ctrl-D to leave")
    typed.wait_for_end(talk.answer_now)


def _told_stranger(model: str, source: str, as_json: bool) -> list[str]:
    """What the model has never seen the like of, told to people."""
    strange = stranger(model, source)
    for line in () if as_json else strange:
        note(line)
    return strange


def _check_source(source: str) -> None:
    if source in ("-", "/dev/stdin"):
        do = "a named pipe (mkfifo), <(command), or onlooker ask"
        raise InputError("questions are read from the standard input, the video cannot be too", given=source, do=do)


def _typed(pace: str) -> TypedQuestions:
    """The lines of the standard input: all of them now, or as they are typed."""
    typed = TypedQuestions(sys.stdin)
    if pace == "max":
        typed.read_all()
    else:
        typed.start()
        _tell_at_terminal("watching; type a question and press Enter, Ctrl-D when you have no more")
    return typed


def _tell_at_terminal(text: str) -> None:
    if sys.stdin is not None and sys.stdin.isatty():
        note(text)


class _Talk:
    """Questions put to a session, and its answers printed."""

    def __init__(
        self, session: "Session", typed: TypedQuestions, fps: float, as_json: bool, live: "LiveSource | None"
    ) -> None:
        self._session, self._typed, self._fps, self._as_json = session, typed, fps, as_json
        self._live = live
        self._told: tuple[str, str | None] = ("live", None)

    def frames_of(self, opened: Opened) -> Generator[Frame]:
        """Frames as they come. Between them, however long that takes, what is typed is answered at once."""
        from onlooker.video import Ahead

        with contextlib.ExitStack() as reading:
            source = opened.live or reading.enter_context(Ahead(opened.frames))
            while True:
                try:
                    frame = source.next_within(LOOK_S)
                except StopIteration:
                    return
                self._tell_state()
                if frame is None:
                    self.answer_now()
                else:
                    yield frame

    def _tell_state(self) -> None:
        """Say that a live source has come into another state, so that nobody takes an old picture for a new one."""
        if self._live is None:
            return
        status = self._live.status()
        if (status.state, status.why) == self._told:
            return
        self._told = (status.state, status.why)
        if self._as_json:
            emit({"event": "source", "state": status.state, "why": status.why, "silent_s": status.silent_s})
        else:
            note(f"the source is {status.state}{f': {plain(status.why)}' if status.why else ''}")

    def wait_until(self, moment: float) -> None:
        """Sleep until a frame is due, answering what is typed meanwhile."""
        while time.monotonic() < moment:
            self.answer_now()
            time.sleep(max(0.0, min(moment - time.monotonic(), LOOK_S)))

    def answer_now(self) -> None:
        """Answer what was asked for this very moment, and what is overdue."""
        if self._session.time_s is not None:
            self._answer(self._typed.take(self._session.time_s - 1e-9))

    def answer_before(self, upcoming: Frame) -> None:
        """Answer what was asked for a moment before the upcoming frame: it must not see that frame."""
        if self._session.time_s is not None:
            self._answer(self._typed.take(upcoming.time_s - 1e-9))

    def answer_rest(self) -> None:
        """Answer what still waits: the stream is over."""
        rest = self._typed.take(AT_THE_END)
        end_s = (self._session.time_s or 0.0) + 1 / self._fps
        if late := sum(end_s < question.at_s < AT_THE_END for question in rest):
            note(f"the video ended before the time of {late} of the questions: answered from its end")
        self._answer(rest)

    def _answer(self, due: list[TimedQuestion]) -> None:
        for question in due:
            try:
                self._say(question)
            except InputError as error:
                # A question that cannot be asked must not end the watching.
                warn(f"cannot answer {question.text!r}: {' '.join(str(error).split())}")
        for complaint in self._typed.complaints():
            warn(complaint)

    def _say(self, question: TimedQuestion) -> None:
        session = self._session
        if question.text.lower().startswith(TYPED):
            write_note(session, question.text[len(TYPED) :].strip(), None, self._as_json)
            return
        options.check_words(question.text)
        # One that came late is still answered as of its moment, any other from the newest frame.
        at = question.at_s if NOW < question.at_s < (session.time_s or 0.0) else None
        if self._as_json:
            answer = session.ask(question.text, at=at)
            emit({"event": "answer"} | as_dict(answer, session.stats()) | self._freshness())
            return
        stream = session.stream(question.text, at=at)
        moment = session.time_s or 0.0 if at is None else at
        print(f"[{clock(moment)}] {question.text} ", end="", flush=True)
        for piece in stream:
            print(plain(piece), end="", flush=True)
        print(flush=True)
        note(explain(stream.answer, session.stats())[0])
        if self._live is not None and (status := self._live.status()).state != "live":
            note(f"the newest picture is {status.silent_s or 0.0:.0f} s old: the source is {status.state}")

    def _freshness(self) -> dict[str, Any]:
        """Of a live source: its state, and how long ago it last showed a picture."""
        if self._live is None:
            return {}
        status = self._live.status()
        return {"source": {"state": status.state, "why": status.why, "silent_s": status.silent_s}}


def _sum_up(
    session: "Session", opened: Opened, watching: alerts.Alerts, behind_s: float, strange: list[str] | None
) -> None:
    """The end of a watching, for people; with the notes so far (`strange`), for programs."""
    stats, standing = session.stats(), watching.sum_up()
    if strange is not None:
        end = {"event": "end", "time_s": session.time_s, "behind_s": behind_s, "warnings": opened.warnings()}
        end |= {"source": opened.name, "notes": strange + opened.remarks()}
        emit(end | {"stream": dataclasses.asdict(stats)} | standing)
        return
    held = size_text(sum(stats.memory_bytes.values()))
    skipped = f"{stats.frames_skipped} of them skipped by the gate, " if stats.frames_skipped else ""
    note(f"the video ended at {clock(session.time_s or 0.0)}: {stats.frames} frames, {skipped}{held} of memory")
    if behind_s > 2:
        warn(f"this machine was {behind_s:.0f} s behind the video at its end: lower --fps, or use --pace max")
    for line in opened.remarks():
        note(line)
    for line in opened.warnings():
        warn(line)
