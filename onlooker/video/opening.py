"""The way in for every kind of source: `open_video` finds out what something is, and opens it as that."""

import contextlib
import os
import time
from typing import BinaryIO, Literal

from onlooker.core.errors import InputError, SourceError
from onlooker.video.decoder import Decoder
from onlooker.video.file import FileSource, ReadSettings
from onlooker.video.live import LiveSource, open_live
from onlooker.video.live_place import QUICK, is_live
from onlooker.video.live_state import LiveSettings
from onlooker.video.parallel import open_pieces
from onlooker.video.picture import Aspect
from onlooker.video.place import Place, locate, redact
from onlooker.video.source import Source, SourceReport
from onlooker.video.spool import Spool, needs_its_end
from onlooker.video.web import WebFile, ask, is_web

# How long the pace of pictures is looked at, and how many of them a camera may have kept for who comes late.
_LOOK_S = 0.3
_MOST_BACKLOG = 500
_TAKEN = {
    "parts": "taken for a camera: its pictures are sent one after another",
    "picture": "taken for a camera: one picture, asked for again and again",
    "playlist": "taken for a camera: its playlist has no end",
    "stream": "taken for a camera: neither the server nor the film says how long it is",
}


def open_video(
    source: str | os.PathLike[str] | BinaryIO,
    fps: float | None = 1.0,
    *,
    size: tuple[int, int] | None = None,
    aspect: Aspect = "squash",
    start_s: float = 0.0,
    end_s: float | None = None,
    on_damage: Literal["report", "raise"] = "report",
    threads: int = 0,
    timeout_s: float = 20.0,
    stream: int | None = None,
    rate: float | None = None,
    live: bool | None = None,
    codec: bool = False,
    workers: int = 1,
) -> Source:
    """Open a video and return its frames as a `Source`, with the first picture already decoded.

    `source`: a path, an http(s) or file address, "-" for the standard input, a named pipe, a folder of pictures or a
    pattern of their names (`seq/img_%03d.png`, `seq/*.png`), or a binary file-like object (read from its start, left
    open). A live address (rtsp://, webcam:0, ...) is one too: it is followed for ever once it has shown a picture, and
    `open_live` has more to set.
    `fps`: frames taken per second of video, by time (see `FrameSampler`); None for every frame.
    `size`: (rows, cols) of the images; None for the size shown. `aspect`: "squash" fills `size`, "fit" keeps shapes.
    `start_s`, `end_s`: the span to deliver, in seconds since the stream began; `end_s` is left out.
    `on_damage`: a damaged file delivers what decodes, then "report" logs one warning and leaves the rest to
    `source.report`, "raise" ends with `DamagedSource`.
    `threads`: decoder threads, 0 for automatic. `timeout_s`: the longest wait for a remote address.
    `stream`: which of several video streams, counted from 0; None for the best, which `report.notes` names.
    `rate`: pictures per second of a source that carries no times, such as raw H.264; None for what its headers say, or
    25, or 1 for pictures that are files of their own. What was assumed is in `report.notes`.

    `live`: whether what is behind an http address is a camera, followed as `open_live` does, or a film; None decides
    by what the server says, and `report.notes` tells. A film has a length, a camera has none.

    `codec`: put what the encoder said of each frame (its kind, its bytes, how far each block moved since the last frame
    taken) into `Frame.codec`. Every decoded picture then costs more time, for simple streams several times as much.
    Frames for which there are no motion vectors (live sources, MJPEG, HEVC, VP9, AV1, pictures that are files) are
    counted in `report.num_without_motion`.

    `workers`: threads that decode a file side by side, in pieces that are cut at keyframes; 0 for as many as there are
    cores, if they are four or more. The frames are the same. Only files whose index names every picture (MP4, MOV) can
    be cut; others are read by one.

    A still image is a video of one frame at 0 s. Raises `InputError` for a bad argument, `SourceError` when there is
    no readable video.
    """
    settings = ReadSettings(fps, size, aspect, start_s, end_s, on_damage, threads, timeout_s, stream, rate, codec)
    if isinstance(source, str) and is_web(source):
        return _web_source(source, settings, live)
    if isinstance(source, str) and is_live(source):
        if live is False:
            raise InputError(
                "this address is live, and nothing else", given=source.partition(":")[0], do="leave live out"
            )
        return _live_source(source, settings)
    if live:
        raise InputError("a file cannot be followed live", given=str(source), do="leave live out")
    return open_pieces(locate(source, timeout_s), settings, workers)


def _web_source(address: str, settings: ReadSettings, live: bool | None) -> Source:
    """A film or a camera, as the server says or as wanted."""
    if live:
        return _live_source(address, settings)
    answer = ask(address, settings.timeout_s)
    with contextlib.ExitStack() as closing:
        closing.callback(answer.web.close)
        if answer.kind == "playlist" and (answer.is_recorded or live is False):
            return FileSource(locate(address), settings)
        film = answer.film()
        closing.callback(film.close)
        is_film = answer.is_recorded or (answer.kind == "stream" and _has_end(film, answer.web.head))
        if is_film or live is False:
            closing.pop_all()
            container = "mpjpeg" if answer.kind == "parts" else None
            name = redact(address)
            return FileSource(Place(film, name, "data", is_object=True, is_ours=True, container=container), settings)
    # The server is asked anew: some cameras serve one at a time.
    source = _live_source(address, settings)
    source.report.note(_TAKEN[answer.kind])
    return source


class _Forward:
    """A file that can only be read on: a demuxer that may seek wants to see the end, and a camera has none."""

    def __init__(self, file: Spool | WebFile) -> None:
        self.read = file.read


def _has_end(film: Spool | WebFile, head: bytes) -> bool:
    """Whether it is a film, though the server does not say how long: it says so itself, or comes faster than life."""
    if needs_its_end(head):
        return True
    place = Place(_Forward(film), "", "data", is_object=True, options=QUICK)
    try:
        decoder = Decoder(place, SourceReport(), threads=1)
    except SourceError:
        return True  # the error to come will name it
    try:
        has_end = decoder.track.duration_s is not None and decoder.track.is_length_stored
        until, num_came = time.monotonic() + _LOOK_S, 0
        while not has_end and time.monotonic() < until:
            has_end = decoder.read() is None or num_came > _MOST_BACKLOG
            num_came += 1
    finally:
        decoder.close()
        film.seek(0)
    return has_end


def _live_source(address: str, settings: ReadSettings) -> LiveSource:
    """A live stream that has shown its first picture."""
    if settings.start_s:
        raise InputError("a live stream begins now", given=f"start_s={settings.start_s}", do="leave start_s out")
    follow = LiveSettings(
        fps=settings.fps,
        size=settings.size,
        aspect=settings.aspect,
        connect_s=settings.timeout_s,
        end_s=settings.end_s,
        codec=settings.codec,
    )
    return open_live(address, follow, wait=True)
