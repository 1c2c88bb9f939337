"""Pictures that are files of their own, played as a film, and the one kind of film that FFmpeg cannot play."""

import io
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import OnlookerError, SourceError
from onlooker.video.decoder import Decoder
from onlooker.video.place import Place
from onlooker.video.source import SourceReport
from onlooker.video.track import MAX_PIXELS, Pictures, Track

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Without times one picture a second is what the default of one look a second sees whole.
ALBUM_RATE = Fraction(1)
_MS = Fraction(1, 1000)
# What browsers show a picture for whose duration is nought.
_USUAL_MS = 100
_MAX_BYTES = 1 << 28


class Album(Pictures):
    """The pictures of a folder or of a pattern of names, in the order of their numbers; see `Place.files`.

    They carry no times: one a second is assumed, or `rate`, and said. A number that is missing leaves its time empty.
    A file that shows no picture is damage.
    """

    def __init__(self, place: Place, report: SourceReport, rate: float | None) -> None:
        self._files, self._report = place.files, report
        self._next = 0
        self._num_shown = 0
        if rate is None:
            report.note(f"its pictures carry no times: {float(ALBUM_RATE):g} a second assumed")
        pace = ALBUM_RATE if rate is None else Fraction(rate).limit_denominator(100_000)
        missing = sorted(set(range(self._files[-1][0] + 1)) - {number for number, _ in self._files})
        if missing:
            report.note(f"of its numbered pictures {len(missing)} are missing")
        self.track: Track = replace(
            self._first_track(),
            time_base=1 / pace,
            start=Fraction(0),
            rate=pace,
            has_times=False,
            is_still=False,
            duration_s=float((self._files[-1][0] + 1) / pace),
            is_duration_own=True,
            is_length_stored=True,
        )

    def read(self) -> "VideoFrame | None":
        while self._next < len(self._files):
            number, path = self._files[self._next]
            self._next += 1
            try:
                decoder = Decoder(_place_of(path), self._report, threads=1)
            except OnlookerError as error:
                self._report.note_damage(f"{path.name} shows no picture: {error.what}")
                continue
            picture = decoder.read()
            decoder.close()
            if picture is None:
                self._report.note_damage(f"{path.name} shows no picture")
                continue
            picture.pts, picture.time_base = number, self.track.time_base
            return picture
        return None

    def seek(self, pts: int) -> bool:
        numbers = [number for number, _ in self._files if number <= pts]
        self._next = max(0, len(numbers) - 1)
        return True

    def rewind(self) -> None:
        self._next = 0

    def close(self) -> None:
        self._next = len(self._files)

    def _first_track(self) -> Track:
        for _, path in self._files:
            try:
                decoder = Decoder(_place_of(path), SourceReport(), threads=1)
            except OnlookerError:
                continue
            decoder.close()
            return decoder.track
        names = f"{self._files[0][1].name} and {len(self._files) - 1} more"
        raise SourceError("none of these files shows a picture", given=names, do="check that they are whole")


def _place_of(path: Path) -> Place:
    return Place(f"file:{path.absolute()}", str(path), "file")


class AnimatedWebP(Pictures):
    """An animated WebP file, decoded by Pillow: FFmpeg knows only the still ones."""

    def __init__(self, place: Place, report: SourceReport) -> None:
        self._place, self._report = place, report
        self._image = self._open()
        self._index = 0
        self._pts = 0
        self.track: Track = Track(codec="webp", time_base=_MS, start=Fraction(0))

    def _open(self) -> Any:
        from PIL import Image

        target = self._place.target
        try:
            if not self._place.is_object:
                target = io.BytesIO(Path(target.removeprefix("file:")).read_bytes())
            else:
                target = io.BytesIO(_whole(target))
            image = Image.open(target, formats=["WEBP"])
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("too large")
        except Exception as error:  # damaged files make Pillow raise nearly anything
            do = "check that the file is complete"
            raise SourceError("this animated WebP cannot be read", given=self._place.name, do=do) from error
        return image

    def read(self) -> "VideoFrame | None":
        from av.video.frame import VideoFrame

        if self._index >= getattr(self._image, "n_frames", 1):
            return None
        try:
            self._image.seek(self._index)
            picture = VideoFrame.from_image(self._image.convert("RGB"))
        except Exception as error:  # damaged files make Pillow raise nearly anything
            self._report.note_damage(f"some pictures could not be decoded: {type(error).__name__}")
            self._index = self._image.n_frames
            return None
        picture.pts, picture.time_base = self._pts, _MS
        self._index += 1
        self._pts += int(self._image.info.get("duration") or _USUAL_MS)
        return picture

    def seek(self, pts: int) -> bool:
        return False

    def rewind(self) -> None:
        self._index = self._pts = 0

    def close(self) -> None:
        self._image.close()


def _whole(file: Any) -> bytes:
    """All bytes of an open file, which may give them in pieces."""
    data = bytearray()
    while piece := file.read(1 << 20):
        data += piece
        if len(data) > _MAX_BYTES:
            raise ValueError("too large")
    return bytes(data)


def is_animated_webp(place: Place) -> bool:
    """Whether a file, or an open file that can be looked at beforehand, is an animated WebP."""
    try:
        if place.is_object and place.target.seekable():
            head = place.target.read(21)
            place.target.seek(0)
        elif place.is_object:
            head = place.target.peek(21)
        else:
            with Path(str(place.target).removeprefix("file:")).open("rb") as file:
                head = file.read(21)
        return bool(re.match(rb"RIFF....WEBPVP8X", head, re.DOTALL)) and bool(head[20] & 2)
    except Exception:  # a caller's file object may raise anything at all; the decoder will tell
        return False
