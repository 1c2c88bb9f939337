"""Draw on the real frames which patches were recomputed and which tokens were kept."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame

FRAMES_IN_PICTURE = 6
PANEL = 224
MARGIN, CAPTION = 8, 22
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (110, 110, 118)
RECOMPUTED, KEPT = (235, 110, 20), (20, 130, 220)


def tint_recomputed(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The picture with every patch tinted by how much of it was computed anew.

    `image` is uint8 `[rows, cols, 3]`; `share` is float `[patch rows, patch cols]` in 0..1. Returns uint8 of the same
    shape: grey where work was reused, its own colours with an orange tint where it was done anew.
    """
    weight = _stretch(share.astype(np.float32), image.shape[:2])[..., None]
    grey = image.mean(axis=2, keepdims=True) * 0.55 + 70
    fresh = image * 0.72 + np.array(RECOMPUTED) * 0.28
    return (grey * (1 - weight) + fresh * weight).astype(np.uint8)


def mark_kept(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The picture with the kept tokens bright and outlined, and everything else dark.

    `image` is uint8 `[rows, cols, 3]`, `kept` is bool `[token rows, token cols]`.
    """
    seen = _stretch(kept.astype(np.float32), image.shape[:2])[..., None] > 0.5
    dark = np.where(seen, image, image * 0.25).astype(np.uint8)
    picture = Image.fromarray(dark)
    pen = ImageDraw.Draw(picture)
    rows, cols = kept.shape
    high, wide = image.shape[0] / rows, image.shape[1] / cols
    for row, col in np.argwhere(kept):
        box = [col * wide, row * high, (col + 1) * wide - 1, (row + 1) * high - 1]
        pen.rectangle(box, outline=KEPT, width=max(1, int(wide / 16)))
    return np.asarray(picture)


def contact_sheet(shots: list[tuple[Frame, np.ndarray, np.ndarray]]) -> Image.Image:
    """Frames side by side, each above its recomputed patches and its kept tokens."""
    label = 118
    width = label + len(shots) * (PANEL + MARGIN) + MARGIN
    height = CAPTION + 3 * (PANEL + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    rows = [
        ("the stream", INK, ""),
        ("recomputed", RECOMPUTED, "in the vision tower"),
        ("kept", KEPT, "for the language model"),
    ]
    for place, (name, colour, note) in enumerate(rows):
        top = CAPTION + place * (PANEL + MARGIN) + PANEL // 2 - 16
        pen.text((MARGIN, top), name, fill=colour, font=font)
        if place and shots:
            shares = [shot[place].mean() for shot in shots]
            pen.text(
                (MARGIN, top + 20),
                f"{np.mean(shares):.0%} of the work" if place == 1 else f"{np.mean(shares):.0%} of the tokens",
                fill=INK,
                font=small,
            )
            pen.text((MARGIN, top + 36), note, fill=FAINT, font=small)
    for column, (frame, recomputed, kept) in enumerate(shots):
        left = label + column * (PANEL + MARGIN)
        note = f"{frame.time_s:.1f} s" + ("  encoded whole" if recomputed.min() >= 1 else "")
        pen.text((left, 4), note, fill=INK, font=small)
        image = _square(frame.image)
        for place, panel in enumerate((image, tint_recomputed(image, recomputed), mark_kept(image, kept))):
            sheet.paste(Image.fromarray(panel), (left, CAPTION + place * (PANEL + MARGIN)))
    return sheet


class OverlayWriter:
    """Writes an overlay: a .png of the newest frames, or an .mp4 of all of them.

    Memory is bounded: a picture keeps the newest six frames, a film none. A file is only left behind when it is whole.
    Raises `InputError` when the file cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._shots: deque[tuple[Frame, np.ndarray, np.ndarray]] = deque(maxlen=FRAMES_IN_PICTURE)
        self._film: Any = None
        self._stream: Any = None
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")

    def add(self, frame: Frame, recomputed: np.ndarray, kept: np.ndarray) -> None:
        """Add a frame with what happened to its tokens (see `tint_recomputed`, `mark_kept`)."""
        if self._path.suffix == ".png":
            self._shots.append((frame, recomputed, kept))
            return
        panels = [frame.image, tint_recomputed(frame.image, recomputed), mark_kept(frame.image, kept)]
        self._encode(np.concatenate([_square(panel) for panel in panels], axis=1))

    def close(self) -> None:
        """Finish the file. Without any frame nothing is written."""
        try:
            if self._shots:
                contact_sheet(list(self._shots)).save(self._partial, format="PNG")
            elif self._film is not None:
                self._film.mux(self._stream.encode(None))
                self._film.close()
            else:
                return
            self._partial.replace(self._path)
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise InputError("the overlay cannot be written", given=str(error), do="choose another place") from error

    def _encode(self, picture: np.ndarray) -> None:
        import av

        if self._film is None:
            try:
                self._film = av.open(str(self._partial), "w", format="mp4")
            except OSError as error:
                raise InputError(
                    "the overlay cannot be written", given=str(error), do="choose another place"
                ) from error
            # One picture a second would look frozen to a player; a film is shown at two a second or faster.
            self._stream = self._film.add_stream("libx264", rate=max(2, round(self._fps)))
            self._stream.width, self._stream.height = picture.shape[1], picture.shape[0]
            self._stream.pix_fmt = "yuv420p"
        self._film.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))


def _square(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((PANEL, PANEL), Image.Resampling.BILINEAR))


def _stretch(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Every cell of a grid as a block of pixels."""
    rows = np.arange(shape[0]) * grid.shape[0] // shape[0]
    cols = np.arange(shape[1]) * grid.shape[1] // shape[1]
    return grid[rows][:, cols]
