"""Notes of a stream over HTTP: written, listed, found, told as events; on the worker's thread."""

from collections.abc import Iterable
from typing import Any

from onlooker.core.errors import InputError
from onlooker.core.events import Event as Told
from onlooker.core.events import Noted
from onlooker.server.bodies import NoteBody
from onlooker.server.stream import Event, Stream


def write_note(stream: Stream, body: NoteBody) -> dict[str, Any]:
    """Write a note, or a soft prefix, into the memory. Raises what `Session.note` and `Session.prefix` raise, and
    `InputError` unless it is one of the two."""
    assert stream.session is not None, "a stream is open before anyone writes to it"
    if (body.text is None) == (body.prefix is None):
        given = "neither" if body.text is None else "both"
        raise InputError("a note is a text, or a soft prefix by name", given=given, do="give text or prefix")
    if body.text is not None:
        span = stream.session.note(body.text, body.time_s, body.kind)
    else:
        span = stream.session.prefix(str(body.prefix), time_s=body.time_s, kind=body.kind)
    return {
        "text": body.text or body.prefix,
        "kind": span.kind,
        "time_s": span.end_s,
        "tokens": span.num_tokens,
    } | _wall(stream, span.end_s)


def list_notes(stream: Stream, words: str, since_s: float) -> list[dict[str, Any]]:
    """The notes in which all words are, oldest first."""
    assert stream.session is not None, "a stream is open before anyone reads its notes"
    return [_facts(stream, note) for note in stream.session.notes(words, since_s)]


def tell_notes(stream: Stream, events: Iterable[Told]) -> None:
    """Of what the engine's session tells its caller, pass on what was noted; clients hear all else in other ways."""
    for event in events:
        if isinstance(event, Noted):
            stream.events.add(Event("note", _facts(stream, event)))


def _facts(stream: Stream, note: Noted) -> dict[str, Any]:
    return {"text": note.text, "kind": note.kind, "time_s": note.time_s} | _wall(stream, note.time_s)


def _wall(stream: Stream, time_s: float) -> dict[str, float | None]:
    return {"wall": stream.wall_of(time_s)}
