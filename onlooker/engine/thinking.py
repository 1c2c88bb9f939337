"""Thoughts of streams on their way into the memory: begun after a frame, decoded beside the stream, written down."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onlooker.core.contracts import FRAME_SIGNALS, Moment, Thought
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.events import Failed, FrameTaken, Noted
from onlooker.engine.hearing import with_heard
from onlooker.engine.noting import Note, take_notes
from onlooker.engine.probing import Aside, Reply
from onlooker.engine.reading import Reading, note_reading

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

NOTES_SHOWN = 64
"""Notes of a stream that its thinker is shown, the newest."""


@dataclass(frozen=True)
class Thinking:
    """A thought that is being decoded."""

    thought: Thought
    reply: Reply


def begin_thought(session: "Session", taken: FrameTaken) -> Reply | None:
    """Ask the stream's thinker after a frame that it has taken in; what is to be decoded, if anything.

    While one thought is on its way, or where there is no room, another is dropped and counted.
    """
    if not taken.tokens_seen:
        return None
    moment = Moment(taken.time_s, taken.tokens_kept / max(1, taken.tokens_seen), taken.recomputed_ratio)
    if "pooled" in session.thinker.needs and session.carriers is not None:
        moment = replace(moment, pooled=session.carriers.mean(0))
    if session.thinker.needs & FRAME_SIGNALS:
        moment = with_heard(moment, session.heard, session.model)
    thought = session.thinker.think(moment, session.notebook.newest(NOTES_SHOWN), session.states["think"])
    if thought is None:
        return None
    if session.thinking is not None:
        session.totals.thoughts_dropped += 1
        return None
    return _ask(session, thought)


def _ask(session: "Session", thought: Thought) -> Reply | None:
    """Put a thought on its way; None where there is no room, which is told and counted."""
    try:
        reply = Reply(
            session,
            thought.prompt,
            thought.longest,
            since_s=thought.since_s,
            priority=1,
            place=thought.place,
            notes=not thought.alone,
        )
    except (CapacityError, InputError) as error:
        session.totals.thoughts_dropped += 1
        session.tell(Failed(session.now_s, error))
        return None
    session.thinking = Thinking(thought, reply)
    return reply


def write_thoughts(engine: "Engine", sessions: Iterable["Session"]) -> list[Reply]:
    """Write down the thoughts that have been decoded, those of all streams in one pass; what is to be decoded besides,
    about the same moments. What there is no room for is told to its session; one that was cancelled is dropped and
    counted."""
    notes: list[Note] = []
    begun: list[Reply] = []
    for session in sessions:
        if session.thinking is None or not session.thinking.reply.done:
            continue
        thinking, session.thinking = session.thinking, None
        if session.closed:
            continue
        if not thinking.reply.finished:
            session.totals.thoughts_dropped += 1
            continue
        state, text = session.states["think"], thinking.reply.text
        session.totals.thoughts += bool(text)
        written = session.thinker.write(thinking.thought, text, state) if text else ""
        further = session.thinker.further(thinking.thought, state)
        reply = _ask(session, further) if further is not None else None
        begun += [reply] if reply is not None else []
        if not written:
            continue
        if not session.thinker.hidden:
            notes.append(Note(session, written, None, "thought"))
            continue
        noted = Noted(session.now_s, written, "thought")
        session.thinker.keep(noted, session.states["think"])
        session.notebook.add(noted)
        session.tell(noted)
    for note, done in zip(notes, take_notes(engine, notes) if notes else (), strict=True):
        if isinstance(done, Exception):
            note.session.tell(Failed(note.session.now_s, done))
    return begun


def go_on_thinking(
    engine: "Engine", sessions: Sequence["Session"], taken: Sequence[tuple["Session", FrameTaken | Failed]]
) -> list[Aside]:
    """Write down the thoughts that are complete, and begin those that are due after these frames: what is to be
    decoded for them, when there is time."""
    further = write_thoughts(engine, [session for session in sessions if session.thinking is not None])
    begun = [begin_thought(session, event) for session, event in taken if isinstance(event, FrameTaken)]
    return [*further, *(reply for reply in begun if reply is not None)]


def hidden_notes(session: "Session", question: str) -> Sequence[Reading]:
    """What a question reads of the notes that frames do not see."""
    if not session.thinker.hidden:
        return ()
    model = session.model
    read = session.thinker.read(session.states["think"], question, lambda text: len(model.note_ids(text)))
    return [note_reading(model, model.note_ids(note.text), note.time_s, note.kind) for note in read]
