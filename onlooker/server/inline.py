"""What a request brings to look at: videos and pictures, inline (`data:`) or by address."""

import asyncio
import base64
import binascii
import tempfile
from functools import partial
from typing import IO

from onlooker.server.addresses import fetch
from onlooker.server.keys import Caller
from onlooker.server.pictures import check_type
from onlooker.server.refusals import Refusal
from onlooker.server.service import Service, told
from onlooker.server.sources import Feeder, video_of
from onlooker.server.stream import Stream, StreamSettings


async def watch_video(service: Service, caller: Caller, url: str, fps: float) -> Stream:
    """A session that has seen a whole video; the caller closes it. Raises `Refusal`."""
    limits = service.limits
    with tempfile.TemporaryFile(prefix="onlooker-") as file:
        await _read_into(service, url, file, limits.video_bytes)
        stream = await service.open(caller, StreamSettings("every"))
        try:
            feeder = Feeder(
                stream,
                "video",
                partial(video_of, file, fps, limits.frame_pixels),
                pace="max",
                most_frames=limits.video_frames,
            )
            feeder.start()
            await asyncio.wrap_future(feeder.done)
            if feeder.was_cut:
                most = f"at most {limits.video_frames} frames of a video are looked at"
                raise Refusal(413, "video_too_long", f"{most}; lower fps (now {fps:g})")
            if stream.last_time_s is None:
                raise Refusal(422, "source_unreadable", "the video showed no frame")
        except BaseException as error:
            await service.close(stream, "its video could not be watched")
            if isinstance(error, Exception):
                raise told(error) from error
            raise
    return stream


async def watch_pictures(service: Service, caller: Caller, urls: list[str]) -> Stream:
    """A session that has seen these pictures, one a second; the caller closes it. Raises `Refusal`."""
    stream = await service.open(caller, StreamSettings("every"))
    try:
        for number, url in enumerate(urls):
            with tempfile.TemporaryFile(prefix="onlooker-") as file:
                kind = check_type(await _read_into(service, url, file, service.limits.frame_bytes))
                file.seek(0)
                offered = await service.push(stream, file.read(), kind, float(number), None)
            assert offered.arrived is not None, "a session without fps leaves nothing out"
            await asyncio.wrap_future(offered.arrived.taken)
    except BaseException as error:
        await service.close(stream, "its pictures could not be seen")
        if isinstance(error, Exception):
            raise told(error) from error
        raise
    return stream


def picture_of(url: str, most_bytes: int) -> tuple[bytes, str]:
    """The bytes and the format of a picture in a `data:` address. Raises `Refusal`."""
    if not url.startswith("data:"):
        raise Refusal(
            422, "invalid_address", "a picture is given inline, as data:image/jpeg;base64,...", param="image_url"
        )
    data, kind = _inline(url, most_bytes)
    return data, check_type(kind)


async def _read_into(service: Service, url: str, file: IO[bytes], most_bytes: int) -> str:
    """Read an address into a file; its content type."""
    if url.startswith("data:"):
        data, kind = _inline(url, most_bytes)
        file.write(data)
    else:
        kind = await fetch(url, file, most_bytes, service.allowed)
    file.flush()
    file.seek(0)
    return kind


def _inline(url: str, most_bytes: int) -> tuple[bytes, str]:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Refusal(422, "invalid_address", "an inline address is data:TYPE;base64,...", param="url")
    if len(body) * 3 // 4 > most_bytes + 2:
        raise Refusal(413, "body_too_large", f"at most {most_bytes} bytes may be given inline")
    try:
        return base64.b64decode(body, validate=True), head[len("data:") : -len(";base64")]
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "invalid_address", "the inline data is not base64", param="url") from error
