"""One picture of a stream and the true time it was shown."""

import io
from dataclasses import dataclass

import numpy as np

from onlooker.core.errors import InputError


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

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            given = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(
                "a frame needs a uint8 RGB image [rows, cols, 3]", given=given, do="convert the picture first"
            )
        if image.shape[0] < 1 or image.shape[1] < 1:
            raise InputError("a frame needs at least one pixel", given=str(list(image.shape)), do="skip empty pictures")
        if not np.isfinite(self.time_s) or self.time_s < 0:
            raise InputError(
                "a frame needs its time in seconds since the stream began",
                given=repr(self.time_s),
                do="pass time_s >= 0",
            )

    def jpeg(self, longest_side: int = 1280, quality: int = 85) -> bytes:
        """The picture as a JPEG file, made smaller when a side has more than `longest_side` pixels."""
        from PIL import Image

        picture = Image.fromarray(self.image)
        picture.thumbnail((longest_side, longest_side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return file.getvalue()
