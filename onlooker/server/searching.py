"""What was kept, read again: search, pictures of alerts, export."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from onlooker.server.bodies import Body
from onlooker.server.database import Wanted
from onlooker.server.history import History, as_vtt
from onlooker.server.keys import Caller
from onlooker.server.refusals import Refusal
from onlooker.server.sessions import Asker

if TYPE_CHECKING:
    from onlooker.server.service import Service

Wall = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class Search(Body):
    """What to look for."""

    q: str = Field(default="", max_length=300)
    stream: str | None = Field(default=None, max_length=200)
    kind: Literal["answer", "alert", "source", "rules", "note", "quality"] | None = None
    since: Wall | None = None
    until: Wall | None = None
    before: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    limit: int = Field(default=50, ge=1, le=500)
    by: Literal["words", "meaning"] = "words"
    like: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Number of a moment: others that look like it."""

    def wanted(self, caller: Caller) -> Wanted:
        """As the database has it."""
        names = ("stream", "kind", "since", "until", "before", "limit")
        return Wanted(self.q, owner=caller.name, **{name: getattr(self, name) for name in names})


class Export(Search):
    """What to write out, and how."""

    format: Literal["jsonl", "vtt"] = "jsonl"


def history_routes(service: "Service") -> APIRouter:
    """Routes of what was kept."""
    routes = APIRouter(prefix="/v1", tags=["history"])

    def history() -> History:
        if (found := service.history) is None:
            raise Refusal(404, "history_off", "this server keeps nothing; start it with --state DIR")
        return found

    @routes.get("/search")
    async def search(caller: Asker, query: Annotated[Search, Query()]) -> dict[str, Any]:
        """Answers, alerts, sources up and down, changed rules, by their words; newest first. `next` is the `before` of
        the next page. By meaning: moments of the sources, best first."""
        if query.by == "meaning" or query.like is not None:
            history()
            assert service.finder is not None, "it goes with a history"
            return await service.finder.find(query.wanted(caller), query.like)
        found = await asyncio.to_thread(history().database.find, query.wanted(caller))
        events = [_told(event) for event in found]
        return {"events": events, "next": events[-1]["id"] if len(events) == query.limit else None}

    @routes.get("/search/moments/{number}.jpg")
    async def moment(number: Annotated[int, Path(ge=0, lt=2**31)], caller: Asker) -> Response:
        """The picture of a moment."""
        history()
        assert service.finder is not None, "it goes with a history"
        found = await asyncio.to_thread(service.finder.moments.picture, number)
        if found is None:
            raise Refusal(404, "no_picture", "there is no picture of that moment")
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    @routes.get("/search/{number}.jpg")
    async def picture(number: int, caller: Asker) -> Response:
        """What an alert saw."""
        found = await asyncio.to_thread(history().database.picture, min(number, 2**62), caller.name)
        if found is None:
            raise Refusal(404, "no_picture", "there is no picture of that event")
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    @routes.get("/search/{number}/clip")
    async def clip(number: int, caller: Asker) -> Response:
        """The seconds of video around an alert."""
        found = await asyncio.to_thread(history().database.clip, min(number, 2**62), caller.name)
        if found is None:
            raise Refusal(404, "no_clip", "there is no video of that event")
        return Response(found.data, media_type=found.media_type, headers={"Cache-Control": "private, max-age=86400"})

    @routes.get("/export")
    async def export(caller: Asker, query: Annotated[Export, Query()]) -> Response:
        """Everything that is wanted, oldest first: JSON Lines, or WebVTT of one stream."""
        if query.format == "vtt" and query.stream is None:
            raise Refusal(422, "invalid_request", "subtitles are of one stream", param="stream")
        events = history().database.all(query.wanted(caller))
        lines = as_vtt(events) if query.format == "vtt" else (json.dumps(_told(event)) + "\n" for event in events)
        kind = "text/vtt" if query.format == "vtt" else "application/jsonl"
        return StreamingResponse(_threaded(lines), media_type=kind, headers={"Cache-Control": "no-store"})

    return routes


def _told(event: dict[str, Any]) -> dict[str, Any]:
    picture = f"/v1/search/{event['id']}.jpg" if event.pop("has_picture") else None
    clip = f"/v1/search/{event['id']}/clip" if event.pop("has_clip") else None
    return event | {"picture": picture, "clip": clip}


async def _threaded(lines: Iterator[str]) -> AsyncIterator[str]:
    """Lines made off the event loop, a few hundred at a time."""

    def some() -> str:
        return "".join(line for _, line in zip(range(500), lines, strict=False))

    while text := await asyncio.to_thread(some):
        yield text
