"""The session API: open, push, ask, events, rules, pictures, close."""

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from onlooker.core import registry
from onlooker.core.events import Answer
from onlooker.engine import Engine
from onlooker.server import snapshots
from onlooker.server.between import between_steps
from onlooker.server.bodies import AskBody, FrameQuery, Name, NoteBody, NoteQuery, RuleBody, SessionBody
from onlooker.server.feed import Missed
from onlooker.server.keys import Caller
from onlooker.server.notes import list_notes, write_note
from onlooker.server.observing import figures_of
from onlooker.server.pictures import FORMATS, check_type
from onlooker.server.refusals import Refusal
from onlooker.server.rules import describe_rules, put_rule, remove_rule, rule_of
from onlooker.server.rules import told as rule_told
from onlooker.server.saving import restore, save
from onlooker.server.service import Service, told
from onlooker.server.stream import Event, Stream, StreamSettings
from onlooker.server.wire import EventStream, answer_facts, frame_facts, sse

HEARTBEAT_S = 15.0
"""After so many quiet seconds a comment is sent, so that both ends notice when the other is gone."""


def caller_of(request: Request) -> Caller:
    """Who sent this request, as found at the gate."""
    return request.state.caller


Asker = Annotated[Caller, Depends(caller_of)]


def session_routes(service: Service) -> APIRouter:
    """Routes under /v1/streaming."""
    routes = APIRouter(prefix="/v1/streaming", tags=["sessions"])
    for part in (_about, _lifetime, _talk, _pictures, _snapshots, _notes, _rules):
        part(routes, service)
    return routes


def _about(routes: APIRouter, service: Service) -> None:
    """What the server is and has."""

    @routes.get("/config")
    async def config(caller: Asker) -> dict[str, Any]:
        """Limits, models, methods, accepted pictures."""
        limits, methods = service.limits, {}
        if service.worker.is_ready:
            methods = await asyncio.wrap_future(service.worker.call(_methods))
        return {
            "model": service.settings.model,
            "methods": methods,
            "pictures": sorted(set(FORMATS) - {"image/jpg"}),
            "policies": ["freshest", "every"],
            "snapshots": service.settings.snapshots is not None,
            "history": service.history is not None,
            "role": caller.role,
            "limits": {name: getattr(limits, name) for name in limits.__dataclass_fields__},
        }

    @routes.get("/sources")
    async def sources(caller: Asker) -> dict[str, Any]:
        """The named sources of this server."""
        return {"sources": service.watched.describe()}

    @routes.get("/sessions")
    async def sessions(caller: Asker) -> dict[str, Any]:
        """Your sessions and the shared ones."""
        return {"sessions": [stream.describe() for stream in service.visible(caller)]}


def _methods(engine: Engine) -> dict[str, str]:
    # Of a method of a file its name alone: where that file lies is nobody's business.
    return {kind: re.sub(r"[^+(,=:]*/", "", registry.describe(one)) for kind, one in engine.methods.items()}


def _lifetime(routes: APIRouter, service: Service) -> None:
    """Open, look after, close."""

    @routes.post("/sessions", status_code=201)
    async def open_session(body: SessionBody, caller: Asker) -> dict[str, Any]:
        """Open a session."""
        if body.model not in (None, service.settings.model):
            raise Refusal(404, "model_not_found", f"this server runs {service.settings.model}", param="model")
        if body.source is not None and body.snapshot is not None:
            raise Refusal(422, "invalid_request", "a session begins with a snapshot or with a source", param="source")
        settings = StreamSettings(body.policy, body.fps, body.trace, body.label)
        if body.snapshot is not None:
            stream = await restore(service, caller, settings, body.snapshot)
        elif body.source is not None:
            stream = await service.follow(caller, settings, body.source.url)
        else:
            stream = await service.open(caller, settings)
        return stream.describe() | {"model": service.settings.model}

    @routes.get("/sessions/{session_id}")
    async def session(session_id: str, caller: Asker) -> dict[str, Any]:
        """What a session is and how it is doing."""
        return service.find(caller, session_id).describe()

    @routes.delete("/sessions/{session_id}")
    async def close_session(session_id: str, caller: Asker) -> dict[str, Any]:
        """End a session and free what it holds."""
        stream = service.find(caller, session_id, own=True)
        await service.close(stream, "it was deleted")
        return {"session_id": session_id, "frames": stream.describe()["frames"], "closed": True}

    @routes.get("/sessions/{session_id}/stats")
    async def stats(session_id: str, caller: Asker) -> dict[str, Any]:
        """Frames, drops, tokens kept, lag, bytes."""
        stream = service.find(caller, session_id)
        stream.stats = await between_steps(service, stream, lambda: figures_of(stream))
        return stream.figures()


def _talk(routes: APIRouter, service: Service) -> None:
    """Frames and questions in, answers and events out."""

    @routes.post("/sessions/{session_id}/frame", openapi_extra=_PICTURES)
    async def push(session_id: str, request: Request, caller: Asker, query: Annotated[FrameQuery, Query()]) -> Response:
        """Push one picture, the body of the request."""
        stream = service.find(caller, session_id, own=True)
        if stream.source is not None:
            raise Refusal(409, "fed_by_source", "this session is fed by its source; nothing can be pushed")
        kind = check_type(request.headers.get("content-type"))
        offered = await service.push(stream, await request.body(), kind, query.pts, query.wall)
        if offered.arrived is None:
            said = {"time_s": stream.last_time_s, "accepted": False, "reason": offered.reason}
            return JSONResponse(said | {"waiting": offered.waiting, "dropped": stream.lost["dropped"]}, 202)
        time_s = offered.arrived.frame.time_s
        if not query.wait:
            said = {"time_s": time_s, "accepted": True, "reason": None, "waiting": offered.waiting}
            return JSONResponse(said | {"dropped": stream.lost["dropped"]}, 202)
        try:
            taken = await asyncio.wrap_future(offered.arrived.taken)
        except Exception as error:
            raise told(error) from error
        if taken.event is None:
            return JSONResponse({"time_s": time_s, "accepted": False, "reason": taken.reason})
        return JSONResponse({"accepted": True, "reason": None} | frame_facts(taken.event, taken.lag_s))

    @routes.post("/sessions/{session_id}/ask")
    async def ask(session_id: str, body: AskBody, request: Request, caller: Asker) -> Response:
        """Ask about what the session has seen."""
        stream = service.find(caller, session_id)
        question = service.ask(stream, body.question, body, body.at, body.since, caller=caller)
        if body.stream:
            return EventStream(_streamed(service, stream, question), service.limits.send_s)
        return JSONResponse(answer_facts(stream, await service.answer(question, request)))

    @routes.get("/sessions/{session_id}/events")
    async def events(session_id: str, request: Request, caller: Asker, types: str | None = None) -> EventStream:
        """What happens, as server-sent events."""
        stream = service.find(caller, session_id)
        after = _resumed(stream, request.headers.get("last-event-id", ""))
        wanted = None if types is None else {word.strip() for word in types.split(",")}
        return EventStream(_told(stream, after, wanted, service.limits.events_s), service.limits.send_s)


def _pictures(routes: APIRouter, service: Service) -> None:
    """What was seen, to look at."""

    @routes.get("/sessions/{session_id}/preview.jpg")
    async def preview(session_id: str, caller: Asker) -> Response:
        """The newest frame that was taken in."""
        return await newest_jpeg(service, service.find(caller, session_id))

    @routes.get("/sources/{name}/latest.jpg")
    async def latest(name: str, caller: Asker, height: Annotated[int, Query(ge=16, le=2160)] = 720) -> Response:
        """The newest frame of a named source, at most so many pixels high."""
        return await newest_jpeg(service, service.find(caller, name), height)

    @routes.get("/sessions/{session_id}/frames")
    async def thumbnails(session_id: str, caller: Asker) -> dict[str, Any]:
        """The moments there are thumbnails of."""
        return {"times_s": service.find(caller, session_id).album.times()}

    @routes.get("/sessions/{session_id}/frames/{seconds}.jpg")
    async def thumbnail(session_id: str, seconds: str, caller: Asker) -> Response:
        """The picture nearest to a moment, small."""
        stream = service.find(caller, session_id)
        try:
            found = stream.album.nearest(float(seconds)) if math.isfinite(float(seconds)) else None
        except ValueError:
            found = None
        if found is None:
            raise Refusal(404, "no_frame", "there is no picture of that moment")
        return _jpeg(found[1], found[0])

    @routes.get("/sessions/{session_id}/trace")
    async def trace(session_id: str, caller: Asker) -> dict[str, Any]:
        """Which patches of the newest frame were recomputed, which tokens were kept."""
        stream = service.find(caller, session_id)
        made = stream.session.trace if stream.session is not None else None
        if made is None:
            why = "no frame was taken in yet" if stream.settings.trace else "open the session with trace=true"
            raise Refusal(404, "no_trace", why)
        rows, cols = made.recomputed.shape
        token_rows, token_cols = made.kept.shape
        return {
            "time_s": made.time_s,
            "refreshed": made.refreshed,
            "patches": {"rows": rows, "cols": cols, "recomputed": made.recomputed.round(3).ravel().tolist()},
            "tokens": {"rows": token_rows, "cols": token_cols, "kept": made.kept.astype(int).ravel().tolist()},
        }


def _snapshots(routes: APIRouter, service: Service) -> None:
    """What a session remembers, saved."""

    @routes.post("/sessions/{session_id}/snapshot", status_code=201)
    async def snapshot(session_id: str, caller: Asker) -> dict[str, Any]:
        """Save what the session remembers, on the server."""
        return await save(service, caller, service.find(caller, session_id))

    @routes.get("/snapshots")
    async def saved(caller: Asker) -> dict[str, Any]:
        """Your snapshots on this server, oldest first."""
        return {"snapshots": await asyncio.to_thread(snapshots.listed, service.snapshot_folder(), caller)}

    @routes.delete("/snapshots/{name}")
    async def delete_snapshot(name: Name, caller: Asker) -> dict[str, Any]:
        """Remove a snapshot."""
        await asyncio.to_thread(snapshots.delete, service.snapshot_folder(), caller, name)
        return {"snapshot": name, "deleted": True}


def _notes(routes: APIRouter, service: Service) -> None:
    """Texts in the memory."""

    @routes.post("/sessions/{session_id}/notes", status_code=201)
    async def add_note(session_id: str, body: NoteBody, caller: Asker) -> dict[str, Any]:
        """Write a text into the memory, behind the newest frame."""
        stream = service.find(caller, session_id, own=True)
        return await between_steps(service, stream, lambda: write_note(stream, body))

    @routes.get("/sessions/{session_id}/notes")
    async def notes(session_id: str, caller: Asker, query: Annotated[NoteQuery, Query()]) -> dict[str, Any]:
        """What was written into the memory."""
        stream = service.find(caller, session_id)
        return {"notes": await between_steps(service, stream, lambda: list_notes(stream, query.words, query.since))}


def _rules(routes: APIRouter, service: Service) -> None:
    """Rules over a session."""

    @routes.get("/sessions/{session_id}/rules")
    async def rules(session_id: str, caller: Asker) -> dict[str, Any]:
        """The alert rules of a session, with the newest probability of each."""
        stream = service.find(caller, session_id)
        usual = service.settings.response
        return {"rules": await between_steps(service, stream, lambda: describe_rules(stream, usual))}

    @routes.put("/sessions/{session_id}/rules/{name}")
    async def add_rule(session_id: str, name: Name, body: RuleBody, caller: Asker) -> dict[str, Any]:
        """Add or replace an alert rule."""
        stream = service.find(caller, session_id, own=True, rules=True)
        rule = rule_of(name, body, service.settings.response)
        await between_steps(service, stream, lambda: put_rule(stream, rule, service.limits.rules_per_session))
        await service.note_rules(stream)
        return rule_told(rule, service.settings.response)

    @routes.delete("/sessions/{session_id}/rules/{name}")
    async def drop_rule(session_id: str, name: Name, caller: Asker) -> dict[str, Any]:
        """Remove an alert rule."""
        stream = service.find(caller, session_id, own=True, rules=True)
        await between_steps(service, stream, lambda: remove_rule(stream, name))
        await service.note_rules(stream)
        return {"name": name, "deleted": True}


_PICTURES = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(set(FORMATS) - {"image/jpg"})
        },
    }
}


async def _streamed(service: Service, stream: Stream, question: Any) -> AsyncGenerator[str]:
    """An answer as it is written."""
    async with contextlib.aclosing(service.pieces(question)) as pieces:
        try:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    yield sse(answer_facts(stream, piece), "answer")
                else:
                    yield sse({"text": piece}, "delta")
        except Refusal as refusal:
            yield sse(refusal.body(), "error")


def _resumed(stream: Stream, last_event_id: str) -> int | None:
    """The number of the event after which a reader goes on: the newest, where it names none. None when what it names
    belongs to an earlier run, of which nothing is left."""
    run, _, number = last_event_id.rpartition("-")
    if not (number.isascii() and number.isdecimal() and len(number) < 18):
        return stream.events.newest
    return int(number) if run in ("", stream.run) and int(number) <= stream.events.newest else None


async def _told(stream: Stream, after: int | None, wanted: set[str] | None, lasts_s: float) -> AsyncGenerator[str]:
    yield ": listening\n\n"  # the head of the reply leaves at once
    if after is None:
        yield sse({"count": None, "why": "the events of an earlier run are gone"}, "missed", f"{stream.run}-0")
    until = time.monotonic() + lasts_s
    async with contextlib.aclosing(stream.events.read(after or 0, min(HEARTBEAT_S, lasts_s))) as items:
        async for numbered in items:
            if time.monotonic() >= until:
                return
            if numbered is None:
                yield ": still here\n\n"
                continue
            number, item = numbered
            event = Event("missed", {"count": item.count}) if isinstance(item, Missed) else item
            if wanted is None or event.kind in wanted or event.kind == "missed":
                yield sse(event.facts, event.kind, f"{stream.run}-{number}")


async def newest_jpeg(service: Service, stream: Stream, height: int | None = None) -> Response:
    """The newest frame of a session. Its headers tell its age, and whether it is held from before (`X-Stale`)."""
    # Looked up before the picture: one that is called fresh was so when it was taken.
    stale, frame, age_s = stream.is_stale, stream.newest, stream.age_s
    if frame is None:
        raise Refusal(404, "no_frame", "no frame was taken in yet")
    rows, cols = frame.image.shape[:2]
    longest = 960 if height is None else max(height, height * cols // rows)
    jpeg = await asyncio.get_running_loop().run_in_executor(service.pool, frame.jpeg, longest)
    reply = _jpeg(jpeg, frame.time_s)
    reply.headers["X-Stale"] = "true" if stale else "false"
    reply.headers["X-Age-S"] = f"{age_s or 0.0:.3f}"
    return reply


def _jpeg(data: bytes, time_s: float) -> Response:
    return Response(data, media_type="image/jpeg", headers={"X-Time-S": f"{time_s:.3f}", "Cache-Control": "no-store"})
