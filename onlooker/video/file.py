"""Video files: every picture that decodes, at its true time, in bounded memory."""

import logging
import math
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

from onlooker.core.codec import CodecRecord
from onlooker.core.errors import DamagedSource, InputError, SourceError
from onlooker.core.frame import Frame
from onlooker.video.clock import Clock
from onlooker.video.decoder import Decoder
from onlooker.video.frame_sampling import FrameSampler
from onlooker.video.picture import Aspect, PictureMaker, check_size, shown_size, turn_of
from onlooker.video.place import Place
from onlooker.video.source import Source, SourceInfo, SourceReport
from onlooker.video.stills import Album, AnimatedWebP, is_animated_webp
from onlooker.video.track import Pictures, exact_seconds

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_LOG = logging.getLogger("onlooker.video")
_SEEK_MARGINS_S = (0, 2, 10, 60)
# Below this an early end is rounding in the container, not a missing piece.
_SMALLEST_LOSS_S = Fraction(1, 4)


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
    stream: int | None = None
    rate: float | None = None
    codec: bool = False

    def __post_init__(self) -> None:
        FrameSampler(self.fps, self.start_s)
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
        if self.stream is not None and (type(self.stream) is not int or self.stream < 0):
            raise InputError("stream is the number of a video stream, from 0", given=repr(self.stream), do="stream=0")
        if self.rate is not None and not (_is_number(self.rate, above=0.0) and self.rate <= 1000):
            raise InputError("rate is a number of pictures a second", given=repr(self.rate), do="rate=5.0")
        if type(self.threads) is not int or not 0 <= self.threads <= 64:
            raise InputError("threads must be 0 (automatic) to 64", given=repr(self.threads), do="threads=0")
        if not _is_number(self.timeout_s, above=0.0):
            raise InputError("timeout_s must be a positive number", given=repr(self.timeout_s), do="timeout_s=20.0")


class FileSource(Source):
    """A container, or pictures that are files, being read; made by `open_video`. With a `sampler` it is a piece of a
    longer reading, which knows which times are due."""

    def __init__(self, place: Place, settings: ReadSettings, sampler: FrameSampler | None = None) -> None:
        self._pictures: Pictures | None = None
        self._lock = threading.Lock()
        self._settings = settings
        self._place = place
        self._report = SourceReport()
        self._sampler = sampler or FrameSampler(settings.fps, settings.start_s)
        try:
            pictures = self._pictures = _pictures_of(place, self._report, settings)
        except BaseException:
            place.close()
            raise
        track = self._track = pictures.track
        try:
            first = self._first_picture(pictures)
            self._first: VideoFrame | None = first
            self._clock = Clock(
                self._report,
                origin=track.start,
                end_s=track.duration_s,
                interval_s=1 / track.rate if track.rate else None,
                is_end_certain=track.is_length_stored,
            )
            self._stored_size = (first.height, first.width)
            self._maker: PictureMaker | None = PictureMaker(settings.size, settings.aspect, track.aspect)
            self._info = self._describe(first)
            self._go_to_start(pictures, first)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> SourceInfo:
        return self._info

    @property
    def report(self) -> SourceReport:
        return self._report

    def key_times(self) -> list[float]:
        """When pictures begin that need no other, in seconds since the stream began, as an index that names every
        picture tells; empty where there is none. Rough by a few pictures."""
        return [] if self._pictures is None else self._pictures.key_times()

    def __next__(self) -> Frame:
        with self._lock:
            pictures, maker = self._pictures, self._maker
            while pictures is not None and maker is not None:
                picture = self._next_picture(pictures)
                if picture is None:
                    self._finish(pictures)
                    break
                time_s = self._clock.time_of(picture.pts, picture.time_base or self._track.time_base)
                if self._settings.end_s is not None and time_s >= self._settings.end_s:
                    self._report.num_skipped += 1
                    self._close_now()
                    break
                if not self._sampler.wants(time_s):
                    self._report.num_skipped += 1
                    continue
                frame = Frame(self._convert(maker, picture), time_s, codec=self._record(pictures, picture))
                self._report.num_delivered += 1
                return frame
            raise StopIteration

    def close(self) -> None:
        with self._lock:
            self._close_now()

    def __del__(self) -> None:
        # PyAV's objects refer to one another in a circle; without this an abandoned loop keeps its file open.
        if getattr(self, "_pictures", None) is not None:
            self._close_now()

    def _close_now(self) -> None:
        pictures, self._pictures = self._pictures, None
        self._first = None
        self._maker = None
        if pictures is not None:
            pictures.close()
            self._place.close()

    def _first_picture(self, pictures: Pictures) -> "VideoFrame":
        picture = pictures.read()
        if picture is None:
            found = f" ({self._report.damage[0]})" if self._report.damage else ""
            raise SourceError(
                f"no picture of this could be decoded{found}",
                given=self._place.name,
                do="check that the file is complete and is a video",
            )
        return picture

    def _describe(self, first: "VideoFrame") -> SourceInfo:
        track = self._track
        start = track.start
        if start is None:
            start = exact_seconds(first.pts, first.time_base)
        return SourceInfo(
            name=self._place.name,
            duration_s=track.duration_s,
            # A still image has no pace; FFmpeg calls it 25 fps.
            fps=float(track.rate) if track.rate and not track.is_still else None,
            size=shown_size(first, track.aspect),
            codec=track.codec,
            rotation=turn_of(first).degrees,
            start_time_s=float(start or 0),
        )

    def _go_to_start(self, pictures: Pictures, first: "VideoFrame") -> None:
        start_s = self._settings.start_s
        if start_s == 0:
            return
        duration_s = self._track.duration_s
        if duration_s is not None and self._track.is_duration_own and start_s >= duration_s:
            raise InputError(
                "start_s lies past the end of the video",
                given=f"start_s={start_s}, the video is {duration_s:.3f} s long",
                do="a smaller start_s",
            )
        time_base = self._track.time_base
        if first.pts is None or not time_base:
            return  # without stamps the times after a seek would be unknown: decode forward from the beginning
        if self._clock.time_of(first.pts, first.time_base) < start_s:
            self._seek(pictures, start_s, Fraction(time_base))
        self._clock.restart()

    def _seek(self, pictures: Pictures, start_s: float, time_base: Fraction) -> None:
        assert self._clock.origin is not None
        wanted = self._clock.origin + Fraction(start_s)
        # A container without an index may land after its target or inside a group of pictures: go further back then.
        for margin_s in _SEEK_MARGINS_S:
            target = max(wanted - margin_s, self._clock.origin)
            if not pictures.seek(math.floor(target / time_base)):
                return  # it cannot seek (a pipe): the first picture still waits, decode forward from it
            self._first = pictures.read()
            stamp = None if self._first is None else exact_seconds(self._first.pts, self._first.time_base)
            if self._first is not None and self._first.key_frame and stamp is not None and stamp <= wanted:
                return
        pictures.rewind()
        self._first = pictures.read()

    def _next_picture(self, pictures: Pictures) -> "VideoFrame | None":
        picture, self._first = self._first, None
        if picture is None:
            picture = pictures.read()
        if picture is None:
            return None
        self._report.num_decoded += 1
        if (picture.height, picture.width) != self._stored_size:
            self._stored_size = (picture.height, picture.width)
            self._report.num_size_changes += 1
        return picture

    def _record(self, pictures: Pictures, picture: "VideoFrame") -> CodecRecord | None:
        if pictures.trail is not None:
            return pictures.trail.take(picture)
        if self._settings.codec:
            self._report.num_without_motion += 1
            self._report.note("no encoder says how these pictures moved")
        return None

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

    def _finish(self, pictures: Pictures) -> None:
        missing = pictures.shortfall(max(_SMALLEST_LOSS_S, 2 * self._clock.interval))
        if missing and not self._report.num_clock_jumps:
            self._report.note_damage(missing)
        self._close_now()
        if not self._report.damage:
            return
        found = "; ".join(self._report.damage)
        if self._settings.on_damage == "raise":
            raise DamagedSource(
                f"the video is damaged: {found}", given=self._place.name, do="on_damage='report' to accept what decodes"
            )
        _LOG.warning("%s is damaged: %s", self._place.name, found)


def _pictures_of(place: Place, report: SourceReport, settings: ReadSettings) -> Pictures:
    """What decodes the pictures of a place."""
    if place.files:
        return Album(place, report, settings.rate)
    if is_animated_webp(place):
        return AnimatedWebP(place, report)
    return Decoder(
        place,
        report,
        threads=settings.threads,
        timeout_s=settings.timeout_s,
        number=settings.stream,
        rate=settings.rate,
        codec=settings.codec,
    )


def _is_number(value: object, above: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf
