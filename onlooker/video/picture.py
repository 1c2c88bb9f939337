"""From a decoded picture to the upright RGB array that is delivered.

Rotation and mirroring asked for by the display matrix are applied (to the nearest right angle). Pixels are made
square: a picture whose pixels are not is enlarged along one side, unless a size was asked for, which decides. Colours
follow the stream's tags, and swscale's default (BT.601, limited range) where there are none; HDR is not
tone-mapped, which is said. Transparency is dropped. Scaling is bicubic and filters when it shrinks.
"""

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Aspect = Literal["squash", "fit"]
MAX_SIDE = 16384


@dataclass(frozen=True, slots=True)
class Turn:
    """How a stored picture becomes the one shown: transpose first, then flip."""

    transposed: bool = False
    rows_flipped: bool = False
    cols_flipped: bool = False

    @property
    def degrees(self) -> int:
        """Clockwise rotation, leaving a mirroring aside."""
        if self.transposed:
            return 90 if self.cols_flipped else 270
        return 180 if self.rows_flipped else 0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn `image` [rows, cols, 3]; contiguous result."""
        if self.transposed:
            image = image.transpose(1, 0, 2)
        if self.rows_flipped:
            image = image[::-1]
        if self.cols_flipped:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


_ROTATED = {
    90: Turn(True, rows_flipped=True),
    180: Turn(False, rows_flipped=True, cols_flipped=True),
    270: Turn(True, cols_flipped=True),
}
"""By the counter-clockwise angle to turn a picture by."""


def side_data_of(frame: "VideoFrame", kind: str) -> Any:
    """What lies beside a picture under a name of `av.sidedata.sidedata.Type`, or None. Raises `ValueError` where one of
    them is of a kind that PyAV does not know.

    `frame.side_data` would be kept by the frame and keep it: a picture that was once asked would stay until Python
    looks for garbage, and thousands of large ones with it.
    """
    from av.sidedata.sidedata import SideDataContainer

    container: Any = SideDataContainer  # its stub leaves out what it takes
    return container(frame).get(kind)


def turn_of(frame: "VideoFrame") -> Turn:
    """Read the display matrix of a frame: x' = a x + c y, y' = b x + d y."""
    try:
        side_data = side_data_of(frame, "DISPLAYMATRIX")
    except ValueError:
        # PyAV lists no side data where one is of a kind it does not know (EXIF of a photograph, views of a stereo
        # film). The angle can be had all the same; a mirroring cannot.
        return _ROTATED.get(frame.rotation % 360, Turn())
    if side_data is None:
        return Turn()
    raw = bytes(side_data)
    if len(raw) < 36:
        return Turn()
    a, b, _, c, d = struct.unpack("=5i", raw[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, rows_flipped=b < 0, cols_flipped=c < 0)
    return Turn(False, rows_flipped=d < 0, cols_flipped=a < 0)


def shown_size(frame: "VideoFrame", sample_aspect: Fraction | None) -> tuple[int, int]:
    """(rows, cols) of the picture upright and with square pixels, never smaller than it is stored."""
    rows, cols = frame.height, frame.width
    # A pixel four times as wide as high is damage, not a format; believing it would cost memory.
    if sample_aspect and Fraction(1, 4) <= sample_aspect <= 4:
        if sample_aspect > 1:
            cols = round(cols * sample_aspect)
        else:
            rows = round(rows / sample_aspect)
    return (cols, rows) if turn_of(frame).transposed else (rows, cols)


def check_size(size: tuple[int, int] | None, aspect: Aspect) -> None:
    """Raise `InputError` unless `size` is None or two whole numbers in 1..16384 and `aspect` is known."""
    if aspect not in ("squash", "fit"):
        raise InputError("aspect must be 'squash' or 'fit'", given=repr(aspect), do="aspect='squash'")
    if size is None:
        return
    sides = list(size) if isinstance(size, tuple | list) else []
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise InputError("size must be (rows, cols) in pixels", given=repr(size), do="size=(384, 384)")


class PictureMaker:
    """Makes delivered images out of decoded frames, for one stream.

    `size` (rows, cols) of the result, None to leave it as shown. `aspect` says what `size` means: "squash" fills it
    exactly and lets shapes stretch, as LLaVA-style processors do; "fit" keeps shapes and returns the largest picture
    that fits inside, without bars.
    """

    def __init__(self, size: tuple[int, int] | None, aspect: Aspect, sample_aspect: Fraction | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._size = size
        self._aspect = aspect
        self._sample_aspect = sample_aspect
        self._reformatter = VideoReformatter()

    def image(self, frame: "VideoFrame") -> np.ndarray:
        """Return uint8 RGB [rows, cols, 3]. Raises what swscale raises for a format it cannot read."""
        turn = turn_of(frame)
        rows, cols = self._target(shown_size(frame, self._sample_aspect))
        if turn.transposed:
            rows, cols = cols, rows
        scaled = self._reformatter.reformat(frame, cols, rows, "rgb24", interpolation="BICUBIC")
        return turn.apply(scaled.to_ndarray())

    def _target(self, shown: tuple[int, int]) -> tuple[int, int]:
        if self._size is None:
            return shown
        if self._aspect == "squash":
            return self._size
        scale = min(Fraction(self._size[0], shown[0]), Fraction(self._size[1], shown[1]))
        return max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale))
