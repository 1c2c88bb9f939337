"""One picture of a stream and the true time it was shown."""

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onlooker.core.checks import number, whole
from onlooker.core.codec import CodecRecord
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a stream.

    `image` is uint8 `[rows, cols, 3]`, RGB. `time_s` is the presentation time in seconds since the stream began;
    `wall_time_s` is the time of day (seconds since the epoch) where the source knows it. Raises `InputError`
    when the image is not of that shape and type or the time is not a finite number of seconds >= 0.
    """

    image: np.ndarray
    time_s: float
    wall_time_s: float | None = None
    codec: CodecRecord | None = None
    """What the encoder said of it, where that was asked for and the source has it; see `open_video`."""
    share: float = 1.0
    """With what share of the rows and columns that a model gives its pictures this one is encoded, as a gate said."""

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            given = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(
                "a frame needs a uint8 RGB image [rows, cols, 3]", given=given, do="convert the picture first"
            )
        if image.shape[0] < 1 or image.shape[1] < 1:
            raise InputError("a frame needs at least one pixel", given=str(list(image.shape)), do="skip empty pictures")
        do = "pass its time in seconds since the stream began"
        object.__setattr__(self, "time_s", number("time_s of a frame", self.time_s, least=0.0, do=do))
        if self.wall_time_s is not None:
            do = "pass seconds since the epoch, or None"
            object.__setattr__(self, "wall_time_s", number("wall_time_s of a frame", self.wall_time_s, do=do))
        if self.share != 1.0 and not number("share of a frame", self.share, most=1.0) > 0:
            raise InputError(
                "a frame is encoded with a share of its size", given=str(self.share), do="above 0, up to 1"
            )

    def over(self, dropped: CodecRecord | None) -> "Frame":
        """The same frame, with its encoder's account of the way over one that was dropped before it, where both have
        one."""
        if dropped is None or self.codec is None:
            return self
        return replace(self, codec=self.codec.after(dropped))

    def check_follows(self, time_s: float | None, noted_s: float) -> None:
        """Raise `InputError` unless it comes after the frame at `time_s` (if any) and not before `noted_s`."""
        if time_s is not None and self.time_s <= time_s:
            raise InputError(
                "frames must come in the order of their times",
                given=f"{self.time_s:.3f} s after {time_s:.3f} s",
                do="push each moment once, oldest first; open a new session for a new stream",
            )
        if self.time_s < noted_s:
            raise InputError(
                "frames must not come before what was noted",
                given=f"{self.time_s:.3f} s, after a note at {noted_s:.3f} s",
                do="note at the time of the newest frame",
            )

    def cells(self, most: int, most_pixels: int) -> "Tensor":
        """Mean colour of the cells of a lattice over the picture, float32 `[rows, cols, 3]`, at most `most` along each
        side. Of a picture whose shorter side has more than `most_pixels` only every second, third, ... pixel counts."""
        step = max(1, -(-min(self.image.shape[:2]) // most_pixels))
        sums = self.image[::step, ::step].astype(np.float32)
        for axis in (0, 1):
            length = sums.shape[axis]
            edges = np.arange(min(most, length) + 1) * length // min(most, length)
            counts = np.diff(edges).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
            sums = np.add.reduceat(sums, edges[:-1], axis) / counts
        import torch  # commands that compute nothing start without it

        return torch.from_numpy(sums)

    def brightness(self, rows: int, cols: int) -> "Tensor":
        """Mean brightness, 0 to 255, of the cells of a lattice over the picture, float32 `[rows, cols]`. Of a large
        picture only every second, third, ... pixel counts."""
        import torch

        step = max(1, min(self.image.shape[0] // (4 * rows), self.image.shape[1] // (4 * cols)))
        grey = torch.from_numpy(self.image[::step, ::step].mean(2, dtype=np.float32))
        return torch.nn.functional.interpolate(grey[None, None], size=(rows, cols), mode="area")[0, 0]

    def jpeg(self, longest_side: int = 1280, quality: int = 85) -> bytes:
        """The picture as a JPEG file, made smaller when a side has more than `longest_side` pixels.

        Raises `InputError` for a side below 1 or a quality outside 1 to 100.
        """
        from PIL import Image

        longest_side = whole("longest_side of a JPEG", longest_side, least=1)
        quality = whole("quality of a JPEG", quality, least=1, most=100)

        picture = Image.fromarray(self.image)
        picture.thumbnail((longest_side, longest_side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return file.getvalue()
