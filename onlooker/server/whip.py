"""WHIP (RFC 9725): browsers, OBS and FFmpeg publish into a session over WebRTC. Needs the extra `webrtc`, and `--whip`.

The offer is posted to /whip/SESSION, the answer comes back with a Location; deleting that ends the publication.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from onlooker.core.frame import Frame
from onlooker.server.pictures import fit, thumbnail_of
from onlooker.server.refusals import Refusal
from onlooker.server.service import Service
from onlooker.server.sessions import Asker
from onlooker.server.stream import Stream

LOG = logging.getLogger("onlooker.server")
LONGEST_OFFER = 64 * 1024
LEAST_GAP_S = 1 / 15
"""Pictures nearer together than this are not even converted."""


@dataclass
class Publication:
    """Somebody who sends pictures into a session."""

    stream: Stream
    peer: RTCPeerConnection
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    reading: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """Hang up."""
        if self.reading is not None:
            self.reading.cancel()
        await self.peer.close()


class Publications:
    """Who publishes where, one per session."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._by_session: dict[str, Publication] = {}

    async def begin(self, stream: Stream, offer: str) -> tuple[Publication, str]:
        """Accept an offer; the publication and the answer. Raises `Refusal`: 409 if somebody publishes, 422."""
        if stream.id in self._by_session:
            raise Refusal(409, "already_published", "somebody publishes into this session")
        publication = Publication(stream, RTCPeerConnection(RTCConfiguration(iceServers=[])))
        self._by_session[stream.id] = publication
        peer = publication.peer

        @peer.on("track")
        def begun(track: MediaStreamTrack) -> None:
            if track.kind == "video" and publication.reading is None:
                publication.reading = asyncio.create_task(self._read(publication, track))

        @peer.on("connectionstatechange")
        async def changed() -> None:
            if peer.connectionState in ("failed", "closed", "disconnected"):
                await self.end(publication)

        loop = asyncio.get_running_loop()
        stream.at_end(lambda: asyncio.run_coroutine_threadsafe(self.end(publication), loop))
        try:
            # The publisher begins the handshake, where it does not mind: it alone knows when it has the answer, and
            # what came to it before would be lost.
            offer = offer.replace("a=setup:actpass", "a=setup:active")
            await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            if publication.reading is None:
                raise ValueError("the offer has no video")
            await peer.setLocalDescription(await peer.createAnswer())
        except Exception as error:  # the parser of offers raises whatever comes
            await self.end(publication)
            raise Refusal(422, "invalid_offer", "this is not an offer of video that can be answered") from error
        return publication, peer.localDescription.sdp

    def find(self, stream: Stream, number: str) -> Publication:
        """The publication of that id. Raises `Refusal` (404)."""
        found = self._by_session.get(stream.id)
        if found is None or found.id != number:
            raise Refusal(404, "not_published", "there is no such publication")
        return found

    async def end(self, publication: Publication) -> None:
        """Hang up. Ending twice is fine."""
        if self._by_session.get(publication.stream.id) is publication:
            del self._by_session[publication.stream.id]
            await publication.end()

    async def end_all(self) -> None:
        """Hang up on everyone."""
        for publication in list(self._by_session.values()):
            await self.end(publication)

    async def _read(self, publication: Publication, track: MediaStreamTrack) -> None:
        stream, first_s, last_s = publication.stream, None, -1.0
        begin_s = 0.0 if stream.last_time_s is None else stream.last_time_s + 1.0
        with contextlib.suppress(MediaStreamError, Refusal):
            while True:
                picture: Any = await track.recv()
                if picture.time is None:
                    continue
                first_s = picture.time if first_s is None else first_s
                time_s = begin_s + picture.time - first_s
                # A stamp that runs back (the sender began anew) is left out until it has caught up.
                if time_s - last_s < max(LEAST_GAP_S, 0.5 / (stream.settings.fps or 1e9)):
                    continue
                if picture.width * picture.height > self._service.limits.frame_pixels:
                    LOG.warning("a published picture was too large", extra={"session": stream.id})
                    return
                last_s = time_s
                image, thumbnail = await run_in_threadpool(_converted, picture)
                self._service.metrics.received()
                stream.submit(Frame(image, time_s), thumbnail)


def whip_routes(service: Service) -> APIRouter:
    """Routes under /whip."""

    @contextlib.asynccontextmanager
    async def life(_: Any) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await publications.end_all()

    publications = Publications(service)
    routes = APIRouter(prefix="/whip", tags=["webrtc"], lifespan=life)

    @routes.post("/{session_id}", status_code=201)
    async def publish(session_id: str, request: Request, caller: Asker) -> Response:
        """Begin to publish: an SDP offer in, its answer out."""
        service.may_work()
        stream = service.find(caller, session_id, own=True)
        if stream.source is not None:
            raise Refusal(409, "fed_by_source", "this session is fed by its source; nothing can be published")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/sdp":
            raise Refusal(415, "unsupported_body", "an offer is application/sdp")
        offer = await request.body()
        if len(offer) > LONGEST_OFFER:
            raise Refusal(413, "body_too_large", f"an offer has at most {LONGEST_OFFER} bytes")
        publication, answer = await publications.begin(stream, offer.decode("utf-8", "replace"))
        place = {"Location": f"/whip/{session_id}/{publication.id}"}
        return Response(answer, 201, place, media_type="application/sdp")

    @routes.delete("/{session_id}/{number}")
    async def stop(session_id: str, number: str, caller: Asker) -> Response:
        """Stop publishing."""
        await publications.end(publications.find(service.find(caller, session_id, own=True), number))
        return Response()

    return routes


def _converted(picture: Any) -> tuple[Any, bytes]:
    image = fit(picture.to_ndarray(format="rgb24"))
    return image, thumbnail_of(image)
