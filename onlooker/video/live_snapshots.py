"""A camera that shows one picture at a time: it is asked for the next, again and again."""

import io
import time
from fractions import Fraction
from typing import TYPE_CHECKING

from onlooker.core.errors import SourceError
from onlooker.video.decoder import Decoder
from onlooker.video.place import Place, redact
from onlooker.video.source import SourceReport
from onlooker.video.track import Pictures, Track
from onlooker.video.web import picture_at

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

LEAST_PAUSE_S = 0.1
MOST_PAUSE_S = 1.0
"""A camera is asked at least this often, so that its loss is noticed."""


class Snapshots(Pictures):
    """The picture behind an http address, `fps` times a second (None: five), at most ten times and at least once."""

    def __init__(self, address: str, timeout_s: float | None, fps: float | None, report: SourceReport) -> None:
        self._address, self._timeout_s, self._report = address, timeout_s, report
        self._pause_s = min(max(1 / (fps or 5.0), LEAST_PAUSE_S), MOST_PAUSE_S)
        self._due_s = time.monotonic()
        self._first = self._look()
        self.track: Track = Track(codec=self._codec, time_base=None, rate=Fraction(1 / self._pause_s), has_times=False)

    def read(self) -> "VideoFrame | None":
        first, self._first = self._first, None
        return first or self._look()

    def seek(self, pts: int) -> bool:
        return False

    def rewind(self) -> None:
        return None

    def close(self) -> None:
        return None

    def _look(self) -> "VideoFrame":
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        # A slow camera is asked anew when it has answered, and never for what was missed.
        self._due_s = max(self._due_s, time.monotonic()) + self._pause_s
        name = redact(self._address)
        data = picture_at(self._address, self._timeout_s)
        decoder = Decoder(Place(io.BytesIO(data), name, "data", is_object=True), self._report, threads=1)
        picture = decoder.read()
        decoder.close()
        if picture is None:
            raise SourceError("the camera's picture cannot be decoded", given=name, do="look at it in a browser")
        self._codec = decoder.track.codec
        picture.pts = None
        return picture
