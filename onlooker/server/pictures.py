"""Pictures that clients send: JPEG, PNG or WebP bytes to pixels, with every size checked before it costs memory."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from onlooker.server.refusals import Refusal
from onlooker.server.settings import Limits

FORMATS = {"image/jpeg": "JPEG", "image/jpg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
LONGEST_SIDE = 1280
"""Larger pictures are made smaller at once: no model here looks at more, and waiting frames hold memory."""
THUMBNAIL_SIDE = 240


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 `[rows, cols, 3]`, RGB, and a small JPEG of them."""

    image: np.ndarray
    thumbnail: bytes


def check_type(content_type: str | None) -> str:
    """The picture format of a content type. Raises `Refusal` (415) for all others."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind not in FORMATS:
        names = ", ".join(sorted(set(FORMATS) - {"image/jpg"}))
        raise Refusal(415, "unsupported_picture", f"a frame is one of {names}; given: {kind[:60] or 'no content type'}")
    return FORMATS[kind]


def read_picture(data: bytes, kind: str, limits: Limits) -> Picture:
    """Decode one picture of format `kind`. Raises `Refusal`: 413 for too many bytes or pixels, 422 for damage."""
    if len(data) > limits.frame_bytes:
        raise Refusal(413, "frame_too_large", f"a frame has at most {limits.frame_bytes} bytes; given: {len(data)}")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            pixels = opened.width * opened.height
            if pixels > limits.frame_pixels:
                given = f"{opened.width} x {opened.height}"
                raise Refusal(
                    413, "too_many_pixels", f"a frame has at most {limits.frame_pixels} pixels; given: {given}"
                )
            opened.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a large JPEG is decoded at a half or a quarter
            picture = _in_8_bits(ImageOps.exif_transpose(opened)).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refusal(413, "too_many_pixels", f"a frame has at most {limits.frame_pixels} pixels") from error
    except Refusal:
        raise
    except Exception as error:  # damaged files make the decoders raise nearly anything, struct.error included
        raise Refusal(422, "damaged_picture", f"this is not a readable {kind} picture") from error
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return Picture(np.array(picture), small_jpeg(picture))


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits scaled to 8: Pillow's own conversion makes all but its darkest pixels white."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))


def fit(image: np.ndarray) -> np.ndarray:
    """Pixels uint8 `[rows, cols, 3]`, made smaller when a side has more than `LONGEST_SIDE`."""
    if max(image.shape[:2]) <= LONGEST_SIDE:
        return image
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.array(picture)


def thumbnail_of(image: np.ndarray) -> bytes:
    """A small JPEG of pixels uint8 `[rows, cols, 3]`."""
    return small_jpeg(Image.fromarray(image))


def small_jpeg(picture: Image.Image) -> bytes:
    """A JPEG with no side above `THUMBNAIL_SIDE` pixels."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=70)
    return file.getvalue()
