"""What a source of decoded pictures is to a reader, and which of a container's streams is read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import InputError, SourceError
from onlooker.video.clip import PacketRing
from onlooker.video.codec_trail import CodecTrail
from onlooker.video.place import Place
from onlooker.video.source import SourceReport

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_PIXELS = 16384 * 8192
USUAL_RATE = Fraction(25)
# Streams of bare pictures: whatever times FFmpeg gives them are made up.
_UNTIMED = {"h264", "hevc", "vvc", "mpegvideo", "m4v", "h263", "h261", "mjpeg", "mjpeg_2000", "mpjpeg", "obu", "av1"}
_TRANSFERS = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True, slots=True)
class Track:
    """What is known of the pictures before the first is taken."""

    codec: str
    time_base: Fraction | None
    """Seconds in one unit of a picture's `pts`; None where that is unknown."""
    start: Fraction | None = None
    """The declared stamp of the beginning, in seconds."""
    rate: Fraction | None = None
    """Pictures per second as declared or, where pictures have no times, as assumed."""
    aspect: Fraction | None = None
    """Width of a pixel over its height."""
    has_times: bool = True
    """False where every time is a guess."""
    is_still: bool = False
    """One picture, and no more."""
    duration_s: float | None = None
    """Declared length."""
    is_duration_own: bool = False
    """Whether that length speaks of the pictures, not of another stream."""
    is_length_stored: bool = False
    """Whether the length stands in the file, and was not worked out from the stamps themselves."""


class Pictures(ABC):
    """Decoded pictures, one after another, in the order shown."""

    track: Track
    trail: CodecTrail | None = None
    """What the encoder says of the pictures, where that was asked for and there is an encoder."""
    ring: PacketRing | None = None
    """The newest of the encoded stream, where that was asked for and there is one."""

    @abstractmethod
    def read(self) -> "VideoFrame | None":
        """Return the next picture, None at the end. Damage is counted in the report, never raised."""

    @abstractmethod
    def seek(self, pts: int) -> bool:
        """Go to a picture at or before `pts` from which decoding can begin; False where there is no way."""

    @property
    def skips_to_keys(self) -> bool:
        """Whether all but key frames are left out: the quick way forward for who has fallen behind, if there is one."""
        return False

    @skips_to_keys.setter
    def skips_to_keys(self, value: bool) -> None:
        return None

    @abstractmethod
    def rewind(self) -> None:
        """Go back to the very first picture."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and threads."""

    def key_times(self) -> list[float]:
        """Seconds at which pictures begin that need no other, where an index names every picture; else none."""
        return []

    def shortfall(self, smallest_s: Fraction) -> str | None:
        """After the last picture: what was promised and did not come, in words. `smallest_s` and less is rounding."""
        return None


def choose_stream(container: Any, place: Place, report: SourceReport, number: int | None) -> "VideoStream":
    """The video stream to read: number `number` of the container's (0, 1, ...), or the one FFmpeg thinks best.

    Covers are left out, and so are tracks with one picture where others have more. Notes the choice where there was
    one. Raises `SourceError` when there is no such stream or it cannot be decoded.
    """
    streams = list(container.streams.video)
    films = [stream for stream in streams if not _is_cover(stream)]
    if number is not None:
        if number >= len(streams):
            raise InputError(
                "the source has no such video stream",
                given=f"stream={number}, it has {len(streams)}",
                do=_listed(streams) or "another source",
            )
        chosen = streams[number]
    elif not films:
        kinds = {"a cover" if stream.type == "video" else stream.type for stream in container.streams} or {"nothing"}
        what = f"this holds no video, only {', '.join(sorted(kinds))}"
        raise SourceError(what, given=place.name, do="give a file with pictures")
    else:
        best = container.streams.best("video")
        chosen = best if best in films else films[0]
        if len(films) > 1:
            report.note(f"of its video streams number {streams.index(chosen)} is read: {_listed(streams)}")
    _check_decodable(chosen, place)
    return chosen


def _check_decodable(stream: "VideoStream", place: Place) -> None:
    if stream.codec_context is None:
        raise SourceError("no decoder for this video", given=place.name, do="convert it to H.264")
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        size = f"{stream.codec_context.height} x {stream.codec_context.width}"
        raise SourceError(f"pictures of {size} are too large", given=place.name, do="scale it down first")


def _is_cover(stream: "VideoStream") -> bool:
    # The cover of a song is a video stream to FFmpeg; to us it is no video.
    kinds = type(stream.disposition)
    return bool(stream.disposition & (kinds.attached_pic | kinds.timed_thumbnails))


def _listed(streams: "list[VideoStream]") -> str:
    texts = []
    for number, stream in enumerate(streams):
        context = stream.codec_context
        what = "unknown" if context is None else f"{context.codec.name} {context.height} x {context.width}"
        texts.append(f"{number} ({what}{', a cover' if _is_cover(stream) else ''})")
    return ", ".join(texts)


def describe(container: Any, stream: "VideoStream", report: SourceReport, rate: float | None, is_still: bool) -> Track:
    """The facts of a container's stream. Notes a guessed rate and colours that are not for every screen.

    `rate` is what the user says of pictures without times.
    """
    is_timed = container.format.name not in _UNTIMED and (is_still or not container.format.name.endswith("_pipe"))
    shown_rate = stream.average_rate
    if not is_timed:
        shown_rate = assumed_rate(stream.guessed_rate if stream.codec_context.framerate else None, report, rate)
    duration_s, is_own = _length(container, stream)
    if transfer := _TRANSFERS.get(stream.codec_context.color_trc):
        report.note(f"its colours are HDR ({transfer}), and are not tone-mapped: they look flat")
    return Track(
        codec=stream.codec_context.codec.name,
        time_base=stream.time_base if is_timed else None,
        start=exact_seconds(stream.start_time, stream.time_base) if is_timed else None,
        rate=Fraction(shown_rate) if shown_rate else None,
        aspect=stream.sample_aspect_ratio,
        has_times=is_timed,
        is_still=is_still,
        duration_s=duration_s if is_timed and not is_still else None,
        is_duration_own=is_own,
        is_length_stored=_stores_its_length(container, stream),
    )


def _stores_its_length(container: Any, stream: "VideoStream") -> bool:
    if "mov,mp4" in container.format.name:
        return stream.frames > 0  # of an MP4 in fragments only what has come so far is known
    return container.format.name not in ("mpegts", "mpeg")


def assumed_rate(found: Fraction | None, report: SourceReport, rate: float | None) -> Fraction:
    """Pictures per second of a stream that has no times: what the user says, its headers say, or the usual one."""
    if rate is not None:
        return Fraction(rate).limit_denominator(100_000)
    if found:
        report.note(f"its pictures carry no times: {float(found):g} a second assumed, the rate in its headers")
        return Fraction(found)
    report.note(f"its pictures carry no times, and nothing says their rate: {float(USUAL_RATE):g} a second assumed")
    return USUAL_RATE


def _length(container: Any, stream: "VideoStream") -> tuple[float | None, bool]:
    """Declared seconds from the best witness there is, and whether it speaks of this stream."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), True
    tag = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = tag.split(":")
        return float(hours) * 3600 + float(minutes) * 60 + float(seconds), True
    except ValueError:
        pass
    # The container's length is the longest stream's: with sound it may say nothing about the picture.
    length = container.duration or 0
    return (length / 1e6 if length > 0 else None), len(container.streams) == 1


def exact_seconds(pts: int | None, time_base: Fraction | None) -> Fraction | None:
    """Return `pts` in exact seconds, None where either is missing."""
    return None if pts is None or not time_base else pts * time_base
