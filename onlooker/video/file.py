"""Video files: every picture that decodes, at its true time, in bounded memory. `open_video` is the way in."""

import logging
import math
import os
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from onlooker.core.errors import DamagedSource, InputError, SourceError
from onlooker.core.frame import Frame
from onlooker.video.clock import Clock
from onlooker.video.decoder import Decoder, exact_seconds
from onlooker.video.live import LiveSource, open_live
from onlooker.video.live_place import is_live
from onlooker.video.live_state import LiveSettings
from onlooker.video.picture import Aspect, PictureMaker, check_size, shown_size, turn_of
from onlooker.video.place import Place, locate
from onlooker.video.sampling import Sampler
from onlooker.video.source import Source, SourceInfo, SourceReport

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_LOG = logging.getLogger("onlooker.video")
_SEEK_MARGINS_S = (0, 2, 10, 60)
# Below this an early end is rounding in the container, not a missing piece.
_SMALLEST_LOSS_S = 0.25


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How a file is read; see `open_video` for each field. Raises `InputError` for a value that makes no sense."""

    fps: float | None = 1.0
    size: tuple[int, int] | None = None
    aspect: Aspect = "squash"
    start_s: float = 0.0
    end_s: float | None = None
    on_damage: Literal["report", "raise"] = "report"
    threads: int = 0
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        Sampler(self.fps, self.start_s)
        check_size(self.size, self.aspect)
        if self.end_s is not None and not _is_number(self.end_s, above=self.start_s):
            raise InputError(
                "end_s must be a number of seconds after start_s",
                given=f"start_s={self.start_s!r}, end_s={self.end_s!r}",
                do="end_s=None to read to the end",
            )
        if self.on_damage not in ("report", "raise"):
            raise InputError(
                "on_damage must be 'report' or 'raise'", given=repr(self.on_damage), do="on_damage='report'"
            )
        if type(self.threads) is not int or not 0 <= self.threads <= 64:
            raise InputError("threads must be 0 (automatic) to 64", given=repr(self.threads), do="threads=0")
        if not _is_number(self.timeout_s, above=0.0):
            raise InputError("timeout_s must be a positive number", given=repr(self.timeout_s), do="timeout_s=20.0")


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
) -> Source:
    """Open a video and return its frames as a `Source`, with the first picture already decoded.

    `source`: a path, an http(s) or file address, or a binary file-like object (read from its start, left open). A live
    address (rtsp://, webcam:0, ...) is one too: it is followed for ever once it has shown a picture, and `open_live`
    has more to set.
    `fps`: frames taken per second of video, by time (see `Sampler`); None for every frame.
    `size`: (rows, cols) of the images; None for the size shown. `aspect`: "squash" fills `size`, "fit" keeps shapes.
    `start_s`, `end_s`: the span to deliver, in seconds since the stream began; `end_s` is left out.
    `on_damage`: a damaged file delivers what decodes, then "report" logs one warning and leaves the rest to
    `source.report`, "raise" ends with `DamagedSource`.
    `threads`: decoder threads, 0 for automatic. `timeout_s`: the longest wait for a remote address.

    A still image is a video of one frame at 0 s. Raises `InputError` for a bad argument, `SourceError` when there is
    no readable video.
    """
    settings = ReadSettings(fps, size, aspect, start_s, end_s, on_damage, threads, timeout_s)
    if isinstance(source, str) and is_live(source):
        return _live_source(source, settings)
    return FileSource(locate(source), settings)


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
    )
    return open_live(address, follow, wait=True)


class FileSource(Source):
    """A container being read; made by `open_video`."""

    def __init__(self, place: Place, settings: ReadSettings) -> None:
        self._decoder: Decoder | None = None
        self._lock = threading.Lock()
        self._settings = settings
        self._place = place
        self._report = SourceReport()
        self._sampler = Sampler(settings.fps, settings.start_s)
        decoder = Decoder(place, self._report, threads=settings.threads, timeout_s=settings.timeout_s)
        self._decoder = decoder
        try:
            first = self._first_picture(decoder)
            self._first: VideoFrame | None = first
            stream = decoder.stream
            rate = stream.average_rate
            self._clock = Clock(
                self._report,
                origin=exact_seconds(stream.start_time, stream.time_base),
                end_s=decoder.duration_s,
                interval_s=1 / Fraction(rate) if rate else None,
            )
            self._stored_size = (first.height, first.width)
            self._maker: PictureMaker | None = PictureMaker(settings.size, settings.aspect, stream.sample_aspect_ratio)
            self._info = self._describe(decoder, first)
            self._go_to_start(decoder, first)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> SourceInfo:
        return self._info

    @property
    def report(self) -> SourceReport:
        return self._report

    def __next__(self) -> Frame:
        with self._lock:
            decoder, maker = self._decoder, self._maker
            while decoder is not None and maker is not None:
                picture = self._next_picture(decoder)
                if picture is None:
                    self._finish(decoder)
                    break
                time_s = self._clock.time_of(picture.pts, picture.time_base or decoder.stream.time_base)
                if self._settings.end_s is not None and time_s >= self._settings.end_s:
                    self._report.num_skipped += 1
                    self._close_now()
                    break
                if not self._sampler.wants(time_s):
                    self._report.num_skipped += 1
                    continue
                frame = Frame(self._convert(maker, picture), time_s)
                self._report.num_delivered += 1
                return frame
            raise StopIteration

    def close(self) -> None:
        with self._lock:
            self._close_now()

    def __del__(self) -> None:
        # PyAV's objects refer to one another in a circle; without this an abandoned loop keeps its file open.
        if getattr(self, "_decoder", None) is not None:
            self._close_now()

    def _close_now(self) -> None:
        decoder, self._decoder = self._decoder, None
        self._first = None
        self._maker = None
        if decoder is not None:
            decoder.close()

    def _first_picture(self, decoder: Decoder) -> "VideoFrame":
        picture = decoder.read()
        if picture is None:
            found = f" ({self._report.damage[0]})" if self._report.damage else ""
            raise SourceError(
                f"no picture of this could be decoded{found}",
                given=self._place.name,
                do="check that the file is complete and is a video",
            )
        return picture

    def _describe(self, decoder: Decoder, first: "VideoFrame") -> SourceInfo:
        stream = decoder.stream
        start = exact_seconds(stream.start_time, stream.time_base)
        if start is None:
            start = exact_seconds(first.pts, first.time_base)
        # A still image has no pace; FFmpeg calls it 25 fps.
        is_still = decoder.format_name.endswith("_pipe") or decoder.format_name == "image2"
        duration_s = None if is_still else decoder.duration_s
        return SourceInfo(
            name=self._place.name,
            live=self._place.is_remote and duration_s is None and not is_still,
            duration_s=duration_s,
            fps=float(stream.average_rate) if stream.average_rate and not is_still else None,
            size=shown_size(first, stream.sample_aspect_ratio),
            codec=stream.codec_context.codec.name,
            rotation=turn_of(first).degrees,
            start_time_s=float(start or 0),
        )

    def _go_to_start(self, decoder: Decoder, first: "VideoFrame") -> None:
        start_s = self._settings.start_s
        if start_s == 0:
            return
        duration_s = decoder.duration_s
        if duration_s is not None and decoder.is_duration_certain and start_s >= duration_s:
            raise InputError(
                "start_s lies past the end of the video",
                given=f"start_s={start_s}, the video is {duration_s:.3f} s long",
                do="a smaller start_s",
            )
        time_base = decoder.stream.time_base
        if first.pts is None or not time_base:
            return  # without stamps the times after a seek would be unknown: decode forward from the beginning
        if self._clock.time_of(first.pts, first.time_base) < start_s:
            self._seek(decoder, start_s, Fraction(time_base))
        self._clock.restart()

    def _seek(self, decoder: Decoder, start_s: float, time_base: Fraction) -> None:
        assert self._clock.origin is not None
        wanted = self._clock.origin + Fraction(start_s)
        # A container without an index may land after its target or inside a group of pictures: go further back then.
        for margin_s in _SEEK_MARGINS_S:
            target = max(wanted - margin_s, self._clock.origin)
            if not decoder.seek(math.floor(target / time_base)):
                return  # it cannot seek (a pipe): the first picture still waits, decode forward from it
            self._first = decoder.read()
            stamp = None if self._first is None else exact_seconds(self._first.pts, self._first.time_base)
            if self._first is not None and self._first.key_frame and stamp is not None and stamp <= wanted:
                return
        decoder.rewind()
        self._first = decoder.read()

    def _next_picture(self, decoder: Decoder) -> "VideoFrame | None":
        picture, self._first = self._first, None
        if picture is None:
            picture = decoder.read()
        if picture is None:
            return None
        self._report.num_decoded += 1
        if (picture.height, picture.width) != self._stored_size:
            self._stored_size = (picture.height, picture.width)
            self._report.num_size_changes += 1
        return picture

    def _convert(self, maker: PictureMaker, picture: "VideoFrame") -> np.ndarray:
        try:
            return maker.image(picture)
        except Exception as error:  # swscale's errors have no ancestor of their own in common
            self._close_now()
            raise SourceError(
                f"pictures of format {picture.format.name}, {picture.height} x {picture.width}, cannot be made RGB",
                given=self._place.name,
                do="convert the file to 8-bit yuv420p",
            ) from error

    def _finish(self, decoder: Decoder) -> None:
        self._note_early_end(decoder)
        self._close_now()
        if not self._report.damage:
            return
        found = "; ".join(self._report.damage)
        if self._settings.on_damage == "raise":
            raise DamagedSource(
                f"the video is damaged: {found}", given=self._place.name, do="on_damage='report' to accept what decodes"
            )
        _LOG.warning("%s is damaged: %s", self._place.name, found)

    def _note_early_end(self, decoder: Decoder) -> None:
        stream, declared_s = decoder.stream, decoder.duration_s
        if declared_s is None or not decoder.is_duration_certain or self._report.num_clock_jumps:
            return
        end = exact_seconds(decoder.end_pts - (stream.start_time or 0), stream.time_base)
        if end is not None and declared_s - end > max(_SMALLEST_LOSS_S, 2 * self._clock.interval):
            self._report.note_damage(f"the video ends at {float(end):.2f} s of a declared {declared_s:.2f} s")


def _is_number(value: object, above: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf
