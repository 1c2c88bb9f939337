"""What only an admin may do: read the configuration again; add, change and remove sources."""

import asyncio
import re
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import Field

from onlooker.core.contracts import ResponsePolicy
from onlooker.core.errors import OnlookerError
from onlooker.server.bodies import Body
from onlooker.server.config_sections import Above0, Fps, QuestionSection, SourceSection
from onlooker.server.logs import redact
from onlooker.server.refusals import Refusal, of_error
from onlooker.server.rules import told as rule_told
from onlooker.server.service import Service
from onlooker.server.sessions import Asker
from onlooker.server.settings import BadPictures, Source

SYNTHETIC = re.compile(r"synthetic(:\d{1,9})?")
PREVIEW_S = 10.0
"""Seconds that an address may take to show its first picture."""
SourceName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]


class SourcePut(Body):
    """A source to watch; what is left out stays as it is, or is the usual."""

    url: str | None = Field(default=None, min_length=1, max_length=2000)
    fps: Fps | None = None
    lag_s: Above0 | None = None
    bad_pictures: BadPictures | None = None
    rules: list[dict[str, Any]] | None = Field(default=None, max_length=64)
    questions: list[QuestionSection] | None = Field(default=None, max_length=64)


class Preview(Body):
    """An address to look at once."""

    url: str = Field(min_length=1, max_length=2000)


def admin_routes(service: Service) -> APIRouter:
    """Routes under /v1/admin, which the gate keeps for admins."""
    routes = APIRouter(prefix="/v1/admin", tags=["admin"])

    @routes.post("/reload")
    async def reload(caller: Asker) -> dict[str, Any]:
        """Read the configuration file again and apply what changed; streams that did not change go on."""
        return await service.reload()

    @routes.get("/sources")
    async def sources(caller: Asker) -> dict[str, Any]:
        """What the server watches, with fps, rules and standing questions; addresses without passwords."""
        states = {one["name"]: one["state"] for one in service.watched.describe()}
        usual = service.settings.response
        return {"sources": [describe(one, usual) | {"state": states[one.name]} for one in service.watched.sources]}

    @routes.put("/sources/{name}")
    async def put_source(name: SourceName, body: SourcePut, caller: Asker) -> dict[str, Any]:
        """Watch a source, or change how it is watched; it is written into the configuration file, if there is one."""
        before = next((one for one in service.watched.sources if one.name == name), None)
        source = changed(name, before, body, service.settings.response)
        done = await service.watched.put(source)
        address = None if body.url is None else {"url": body.url}
        written = await service.write_back(name, address)
        return describe(source, service.settings.response) | {"done": done, "written": written}

    @routes.post("/preview")
    async def preview(body: Preview, caller: Asker) -> Response:
        """One picture of an address, before it is watched; why there is none, where there is none."""
        source = changed("preview", None, SourcePut(url=body.url))
        picture = await asyncio.to_thread(first_picture, source.url)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @routes.delete("/sources/{name}")
    async def delete_source(name: SourceName, caller: Asker) -> dict[str, Any]:
        """Watch a source no longer; its memory is gone."""
        await service.watched.remove(name)
        return {"name": name, "deleted": True, "written": await service.write_back(name)}

    return routes


def first_picture(url: str) -> bytes:
    """The first picture of an address as a JPEG. Raises `Refusal` (422) when none comes in time, in words."""
    if url.startswith("synthetic"):
        from onlooker.world import make_episode

        return next(iter(make_episode(int(url.partition(":")[2] or 0), "test").frames(fps=1.0))).jpeg(640)
    from onlooker.video import LiveSettings, is_live, open_live, open_video

    settings = LiveSettings(fps=None, connect_s=PREVIEW_S, lost_after_s=PREVIEW_S)
    try:
        with open_live(url, settings, wait=True) if is_live(url) else open_video(url) as source:
            frame = next(iter(source), None)
    except OnlookerError as error:
        raise Refusal(422, "source_unreadable", redact(str(error)), param="url") from error
    if frame is None:
        raise Refusal(422, "source_unreadable", "it shows no picture", param="url")
    return frame.jpeg(640)


def describe(source: Source, usual: ResponsePolicy | None = None) -> dict[str, Any]:
    """A source as an admin sees it; `usual` is the policy of rules that name none."""
    questions = [asdict(one) for one in source.questions]
    told_of = {"name": source.name, "url": redact(source.url), "fps": source.fps, "lag_s": source.lag_s}
    told_of |= {"bad_pictures": source.bad_pictures}
    return told_of | {"rules": [rule_told(rule, usual) for rule in source.rules], "questions": questions}


def changed(name: str, before: Source | None, body: SourcePut, usual: ResponsePolicy | None = None) -> Source:
    """The source that a request describes; `usual` is the policy of rules that name none. Raises `Refusal` (422)."""
    if body.url is None and before is None:
        raise Refusal(422, "invalid_request", "a new source needs an address", param="url")
    if body.url is not None and "://" not in body.url and not SYNTHETIC.fullmatch(body.url):
        # What is in the file may name anything of this machine; what comes over the network may not.
        raise Refusal(422, "invalid_address", "an address is rtsp://..., http(s)://... or synthetic", param="url")
    if body.url is not None and body.url.lower().startswith("file:"):
        raise Refusal(422, "invalid_address", "files of this machine are named in the configuration only", param="url")
    # Checked as a section of the file is, whose rules and questions these are.
    section = SourceSection(
        name=name, url=body.url or "synthetic", rules=body.rules or [], questions=body.questions or []
    )
    try:
        wanted = section.source(usual)
    except OnlookerError as error:
        raise of_error(error) from error
    if before is None:
        return replace(wanted, fps=body.fps, lag_s=body.lag_s, bad_pictures=body.bad_pictures or "tell")
    return replace(
        before,
        url=before.url if body.url is None else wanted.url,
        fps=body.fps if "fps" in body.model_fields_set else before.fps,
        lag_s=body.lag_s if "lag_s" in body.model_fields_set else before.lag_s,
        bad_pictures=body.bad_pictures or before.bad_pictures,
        rules=before.rules if body.rules is None else wanted.rules,
        questions=before.questions if body.questions is None else wanted.questions,
    )
