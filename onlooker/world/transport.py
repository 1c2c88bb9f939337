"""What the way from a camera does to a video: pictures that freeze, that never come, that come twice, and a thin line.

The pictures of an episode are right at their time; behind a transport some are older, missing or spoilt. What is still
true then is for the one who asks to know (`Transport.spoils`).
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame

Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Transport:
    """What happens to the pictures of one video."""

    frozen: Spans = ()
    """In these seconds the last picture before them stands, to the bit."""
    dropped: Spans = ()
    """In these seconds nothing comes."""
    repeat: int = 1
    """Each picture is shown so many times, in place of those that follow it."""
    kilobits: int = 0
    """Kilobits a second of an H.264 encode that the pictures go through; 0: none."""

    def __post_init__(self) -> None:
        if self.repeat < 1 or self.kilobits < 0:
            given = f"repeat={self.repeat}, kilobits={self.kilobits}"
            raise InputError("a transport repeats a picture once or more", given=given, do="use repeat=1, kilobits=0")

    def spoils(self, span: tuple[float, float]) -> bool:
        """Whether some of the pictures of this span do not come, or come late."""
        return any(start < span[1] and end > span[0] for start, end in (*self.frozen, *self.dropped))

    def carry(self, frames: Iterable[Frame], fps: float) -> Iterator[Frame]:
        """The pictures at the other end."""
        shown = encoded(frames, fps, self.kilobits) if self.kilobits else iter(frames)
        image = None
        for number, frame in enumerate(shown):
            is_frozen = any(start <= frame.time_s < end for start, end in self.frozen)
            if image is None or not (is_frozen or number % self.repeat):
                image = frame.image
            if not any(start <= frame.time_s < end for start, end in self.dropped):
                yield Frame(image, frame.time_s, frame.wall_time_s)


def encoded(frames: Iterable[Frame], fps: float, kilobits: int) -> Iterator[Frame]:
    """The frames after a real H.264 encode of so many kilobits a second, with the times they had.

    A whole clip is encoded at once, in memory. Raises `InputError` for pictures of odd sides.
    """
    yield from decoded(*coded(frames, fps, kilobits))


def coded(frames: Iterable[Frame], fps: float, kilobits: int) -> tuple[bytes, list[float]]:
    """A file of H.264 of so many kilobits a second, and the times of its pictures; of no frames, no bytes."""
    import av

    file, times, rate = io.BytesIO(), [], Fraction(fps).limit_denominator(1000)
    with av.open(file, "w", format="matroska") as container:
        stream = None
        for number, frame in enumerate(frames):
            if stream is None:
                stream = _stream(container, frame, rate, kilobits)
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
            times.append(frame.time_s)
        if stream is None:
            return b"", []
        container.mux(stream.encode(None))
    return file.getvalue(), times


def decoded(file: bytes, times: list[float]) -> Iterator[Frame]:
    """The pictures of what `coded` gives."""
    import av

    if not times:
        return
    with av.open(io.BytesIO(file), "r") as source:
        for time_s, picture in zip(times, source.decode(video=0), strict=True):
            yield Frame(picture.to_ndarray(format="rgb24"), time_s)


def _stream(container, frame: Frame, rate: Fraction, kilobits: int):
    rows, cols = frame.image.shape[:2]
    if rows % 2 or cols % 2:
        raise InputError("H.264 needs even rows and columns", given=f"{rows} x {cols}", do="add one")
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = cols, rows, "yuv420p"
    stream.time_base = stream.codec_context.time_base = 1 / rate
    stream.bit_rate = kilobits * 1000
    stream.options = {
        "preset": "veryfast", "tune": "zerolatency", "maxrate": f"{kilobits}k", "bufsize": f"{kilobits}k",
    }  # fmt: skip
    return stream
