"""Text written into the memory of streams, between their frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.checks import number, words
from onlooker.core.contracts import VideoModel
from onlooker.core.errors import InputError
from onlooker.core.events import Noted
from onlooker.core.spans import NOTES, Span, SpanKind
from onlooker.core.unread import Unread
from onlooker.engine.computing import computing
from onlooker.engine.emission import Writer, read_all
from onlooker.engine.reading import note_reading
from onlooker.engine.request import release

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session


@dataclass(frozen=True)
class Note:
    """A text for the memory of one stream (see `Session.note`)."""

    session: "Session"
    text: str
    time_s: float | None = None
    kind: SpanKind = "text"
    embeddings: Tensor | None = None
    """Rows that are read in place of the words, `[tokens, hidden_dim]` (see `Session.prefix`)."""

    def content(self, model: VideoModel) -> Tensor:
        """What is read: token ids, or rows."""
        if self.embeddings is None:
            return torch.tensor(model.note_ids(self.text))
        return self.embeddings.detach().to(model.spec.device, model.spec.dtype, copy=True)


@computing
def take_notes(engine: "Engine", notes: Sequence[Note]) -> list[Span | Exception]:
    """Read one note of each of several streams in one pass; the block of each, or what it failed of, which leaves that
    stream as it was. Raises `InputError` or `SessionClosed` before anything is done when one may not be written."""
    times = [_check(engine, note) for note in notes]
    if len({id(note.session) for note in notes}) < len(notes):
        raise InputError("a step takes one note per session", given="a session twice", do="use two steps")
    model, done, writers = engine.model, {}, {}
    ids = [note.content(model) for note in notes]
    for n, (note, time_s) in enumerate(zip(notes, times, strict=True)):
        try:
            if note.session.waiting or note.session.pending:
                _close(engine, note.session)
            note.session.begin(len(ids[n]))
        except Exception as error:  # no room for one is not the others' affair
            done[n] = release(error)
            continue
        readings = [] if engine.memory.holds_tokens else [note_reading(model, ids[n], time_s, note.kind)]
        writers[n] = Writer(note.session, readings)
    read_all(engine.passes.run, list(writers.values()), [])
    for n, writer in writers.items():
        session, time_s, kind = writer.session, times[n], notes[n].kind
        try:
            if writer.error is not None:
                raise writer.error
            if engine.memory.holds_tokens:
                done[n] = Span(session.totals.frames + session.totals.notes, kind, len(ids[n]), time_s, time_s)
                plan = session.absorb(Unread(ids[n], time_s, time_s, kind))
            else:
                (done[n],) = writer.spans
                plan = session.keep_blocks(writer.spans)
        except Exception as error:
            writer.undo()
            session.give_up()
            done[n] = release(error)
            continue
        session.settle()
        session.noted_s = time_s
        session.totals.notes += 1
        noted = Noted(time_s, notes[n].text, kind)
        session.notebook.add(noted)
        session.tell(noted)
        session.totals.blocks_parked += len(plan.park)
        session.totals.blocks_forgotten += len(plan.forget)
    return [done[n] for n in range(len(notes))]


def _check(engine: "Engine", note: Note) -> float:
    """The time of a note that may be written."""
    session = note.session
    session.check_open()
    if not session.belongs_to(engine):
        raise InputError("a step takes notes of its own engine", given="one of another", do="use its engine")
    words("a note", note.text, do="write something")
    width, rows = engine.model.spec.hidden_dim, note.embeddings
    if rows is not None and (rows.ndim != 2 or not len(rows) or rows.shape[1] != width or not rows.is_floating_point()):
        given, do = f"{list(rows.shape)} of {rows.dtype}", f"rows [tokens, {width}] of the model's width"
        raise InputError("a soft prefix has rows of the language model's width", given=given, do=do)
    if note.kind not in NOTES:
        raise InputError("there is no such kind of note", given=repr(note.kind)[:80], do=f"one of: {', '.join(NOTES)}")
    newest = session.now_s
    if note.time_s is None:
        return newest
    do = "a note comes behind what is there: at the time of the newest frame, or later"
    return number("time_s", note.time_s, least=newest, unit="seconds", do=do)


def _close(engine: "Engine", session: "Session") -> None:
    """Read the frames that wait for their patch or are held by the compressor, as they are: what a note follows has to
    be there before it."""
    given, seen = engine.closing(session)
    writer = Writer(session, [] if engine.memory.holds_tokens else given.readings(engine.model, engine.layout))
    try:
        read_all(engine.passes.run, [writer], [])
        if writer.error is not None:
            raise writer.error
        plan = engine.keep(session, given, writer)
    except BaseException:
        writer.undo()
        raise
    session.settle()
    newest = session.time_s
    assert newest is not None, "frames that wait have come"
    session.given_out(given, newest)
    session.hold((), newest)
    totals = session.totals
    totals.refreshed_frames += seen is not None and seen.refreshed
    totals.tokens_seen += given.tokens_seen
    totals.tokens_kept += given.tokens_kept
    totals.blocks_parked += len(plan.park)
    totals.blocks_forgotten += len(plan.forget)
