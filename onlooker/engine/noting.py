"""Text written into the memory of streams, between their frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from onlooker.core.checks import number, words
from onlooker.core.errors import InputError
from onlooker.core.spans import NOTES, Span, SpanKind
from onlooker.engine.asking import release
from onlooker.engine.reading import note_reading
from onlooker.engine.seeing import Patch
from onlooker.engine.session import Session

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine


@dataclass(frozen=True)
class Note:
    """A text for the memory of one stream (see `Session.note`)."""

    session: Session
    text: str
    time_s: float | None = None
    kind: SpanKind = "text"


@torch.no_grad()
def take_notes(engine: "Engine", notes: Sequence[Note]) -> list[Span | Exception]:
    """Read one note of each of several streams in one pass; the block of each, or what it failed of, which leaves that
    stream as it was. Raises `InputError` or `SessionClosed` before anything is done when one may not be written."""
    times = [_check(engine, note) for note in notes]
    if len({id(note.session) for note in notes}) < len(notes):
        raise InputError("a step takes one note per session", given="a session twice", do="use two steps")
    model, done, works, chunks = engine.model, {}, [], {}
    ids = [model.note_ids(note.text) for note in notes]
    try:
        for n, (note, time_s) in enumerate(zip(notes, times, strict=True)):
            try:
                if note.session.waiting:
                    _close_patch(engine, note.session)
                note.session.begin(len(ids[n]))
                if not engine.memory.rereads:
                    reading = note_reading(model, ids[n], time_s, note.kind)
                    work, chunks[n] = reading.begin(note.session.store)
                    works.append(work)
            except Exception as error:  # no room for one is not the others' affair
                done[n] = release(error)
        if works:
            engine.passes.run(works)
    except BaseException:
        for chunk in chunks.values():
            chunk.abort()
        raise
    for n, (note, time_s) in enumerate(zip(notes, times, strict=True)):
        if n in done:
            continue
        session = note.session
        try:
            if engine.memory.rereads:
                plan = session.keep_unread(np.array(ids[n]), len(ids[n]), time_s, time_s, note.kind)
                done[n] = Span(session._next_unread - 1, note.kind, len(ids[n]), time_s, time_s)
            else:
                place = session.store._next_id
                plan = session.keep_block(chunks[n])
                done[n] = Span(place, note.kind, len(ids[n]), time_s, time_s)
        except Exception as error:
            chunk = chunks.get(n)
            if chunk is not None:
                chunk.abort()
            session.give_up()
            done[n] = release(error)
            continue
        session.settle()
        session.noted_s = time_s
        session.totals.notes += 1
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
    if note.kind not in NOTES:
        raise InputError("there is no such kind of note", given=repr(note.kind)[:80], do=f"one of: {', '.join(NOTES)}")
    newest = session.now_s
    if note.time_s is None:
        return newest
    do = "a note comes behind what is there: at the time of the newest frame, or later"
    return number("time_s", note.time_s, least=newest, unit="seconds", do=do)


def _close_patch(engine: "Engine", session: Session) -> None:
    """Read the frames that wait for their patch as they are: what a note follows has to be there before it."""
    (seen,) = engine.look([(session, Patch(session.waiting))])
    if engine.memory.rereads:
        plan = session.keep_unread(seen.tokens, len(seen.tokens), seen.patch.start_s, seen.patch.end_s)
    else:
        work, chunk = engine.reading(seen).begin(session.store)
        try:
            engine.passes.run([work])
            plan = session.keep_block(chunk)
        except BaseException:
            chunk.abort()
            raise
    session.settle()
    session.hold((), session.waiting[-1].time_s)
    totals = session.totals
    totals.refreshed_frames += seen.refreshed
    totals.tokens_seen += seen.num_tokens
    totals.tokens_kept += len(seen.tokens)
    totals.blocks_parked += len(plan.park)
    totals.blocks_forgotten += len(plan.forget)
