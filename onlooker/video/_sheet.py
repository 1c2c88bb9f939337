"""The layout of an overlay: panels of a frame, what is written beside them, and the legend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL, FILM_PANEL = 272, 480
"""Longest side of a picture on a sheet and in a film, in pixels."""
SHORTEST = 48
LABEL, GAP, EDGE = 196, 12, 24
PAPER, INK, FAINT = (252, 252, 250), (24, 26, 31), (112, 116, 126)
RECOMPUTED, TINT, KEPT = (224, 92, 8), (255, 128, 16), (0, 118, 214)
SPENT = 0.5
"""How strongly a wholly recomputed patch is tinted."""


@dataclass(frozen=True)
class Shot:
    """One frame and what happened to its tokens; the picture is already of its panel's size."""

    time_s: float
    image: np.ndarray
    recomputed: np.ndarray
    kept: np.ndarray

    @property
    def is_whole(self) -> bool:
        """True when every patch was computed anew in every layer."""
        return bool(self.recomputed.min() >= 1)

    @property
    def panels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The stream, its recomputed patches and its kept tokens, each uint8 of the picture's shape."""
        return self.image, tint_recomputed(self.image, self.recomputed), mark_kept(self.image, self.kept)


def fitted(image: np.ndarray, film: bool = False) -> np.ndarray:
    """The picture in its own proportions with its longer side as long as a panel; sides are even for the encoder."""
    longest = FILM_PANEL if film else PANEL
    scale = longest / max(image.shape[:2])
    rows, cols = (max(SHORTEST, round(side * scale / 2) * 2) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((cols, rows), Image.Resampling.LANCZOS))


def tint_recomputed(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The picture with every patch tinted by how much of it was computed anew.

    `image` is uint8 `[rows, cols, 3]`; `share` is float `[patch rows, patch cols]` in 0..1. Returns uint8 of the same
    shape: pale grey where work was reused, its own colours under an orange tint where it was done anew.
    """
    weight = _stretch(share.astype(np.float32), image.shape[:2])[..., None]
    grey = image.mean(axis=2, keepdims=True) * 0.45 + 128
    # Lifted first: a tint on a dark picture would be brown.
    fresh = (image * 0.7 + 76) * (1 - SPENT) + np.array(TINT) * SPENT
    return np.clip(grey * (1 - weight) + fresh * weight, 0, 255).astype(np.uint8)


def mark_kept(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The picture with the kept tokens bright and outlined, and everything else dark.

    `image` is uint8 `[rows, cols, 3]`, `kept` is bool `[token rows, token cols]`.
    """
    seen = _stretch(kept, image.shape[:2])[..., None]
    picture = Image.fromarray(np.where(seen, image, image * 0.22).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    rows, cols = kept.shape
    high, wide = image.shape[0] / rows, image.shape[1] / cols
    line = max(1, round(min(high, wide) / 12))
    for row, col in np.argwhere(kept):
        corners = [round(col * wide), round(row * high), round((col + 1) * wide) - 1, round((row + 1) * high) - 1]
        pen.rectangle(corners, outline=KEPT, width=line)
    return np.asarray(picture)


def contact_sheet(shots: Sequence[Shot]) -> Image.Image:
    """Frames side by side, each above its recomputed patches and its kept tokens, with shares and a legend."""
    high = max(shot.image.shape[0] for shot in shots)
    widths = [max(96, shot.image.shape[1]) for shot in shots]
    top, step = EDGE + 28, high + 24 + GAP
    width = max(EDGE + LABEL + sum(widths) + GAP * (len(shots) - 1) + EDGE, 920)
    sheet = Image.new("RGB", (width, top + 3 * step + 34), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (name, colour, lines) in enumerate(_labels(shots)):
        middle = top + place * step + high // 2
        pen.text((EDGE, middle - 34), name, fill=colour, font=_font(21))
        for number, text in enumerate(lines):
            pen.text((EDGE, middle - 6 + 19 * number), text, fill=INK if number == 0 else FAINT, font=_font(14))
    left = EDGE + LABEL
    for shot, wide in zip(shots, widths, strict=True):
        pen.text((left, EDGE - 4), clock_text(shot.time_s), fill=INK, font=_font(17))
        for place, (panel, caption) in enumerate(zip(shot.panels, _captions(shot), strict=True)):
            sheet.paste(Image.fromarray(panel), (left, top + place * step))
            pen.text((left, top + place * step + panel.shape[0] + 5), caption, fill=FAINT, font=_font(13))
        left += wide + GAP
    _legend(pen, EDGE, top + 3 * step + 2)
    return sheet


def film_frame(shot: Shot) -> Image.Image:
    """The three panels of one frame side by side, with its time, its shares and a legend; even sides."""
    rows, cols = shot.image.shape[:2]
    wide, top = max(cols, 300), 66
    film = Image.new("RGB", (2 * EDGE + 3 * wide + 2 * GAP, top + rows + 52), PAPER)
    pen = ImageDraw.Draw(film)
    names = [(clock_text(shot.time_s), INK), ("recomputed", RECOMPUTED), ("kept", KEPT)]
    for place, (panel, (name, colour), caption) in enumerate(zip(shot.panels, names, _captions(shot), strict=True)):
        left = EDGE + place * (wide + GAP)
        pen.text((left, 12), name, fill=colour, font=_font(22))
        pen.text((left, 41), caption, fill=FAINT, font=_font(15))
        film.paste(Image.fromarray(panel), (left, top))
    _legend(pen, EDGE, top + rows + 18)
    return film


def clock_text(time_s: float) -> str:
    """A stream time with tenths: 0:07.5, 1:02:03.0."""
    whole, tenth = divmod(round(time_s * 10), 10)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole % 60:02}.{tenth}"


def _labels(shots: Sequence[Shot]) -> list[tuple[str, tuple[int, int, int], list[str]]]:
    share = np.mean([shot.recomputed.mean() for shot in shots])
    kept, seen = sum(int(shot.kept.sum()) for shot in shots), sum(shot.kept.size for shot in shots)
    return [
        ("the stream", INK, [f"{len(shots)} frames" if len(shots) > 1 else "1 frame", "as they came in"]),
        ("recomputed", RECOMPUTED, [f"{share:.0%} of the patches", "in the vision tower"]),
        ("kept", KEPT, [f"{kept} of {seen} tokens", "for the language model"]),
    ]


def _captions(shot: Shot) -> tuple[str, str, str]:
    share = "the whole frame" if shot.is_whole else f"{shot.recomputed.mean():.0%} of {shot.recomputed.size} patches"
    return "", share, f"{int(shot.kept.sum())} of {shot.kept.size} tokens"


def _legend(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    items = [
        ((202, 202, 200), None, "reused from the reference frame"),
        ((236, 158, 92), None, "computed anew (deeper: more of its work)"),
        (None, KEPT, "token kept"),
        ((38, 40, 44), None, "token dropped"),
    ]
    font = _font(14)
    for fill, outline, text in items:
        pen.rectangle([left, top + 2, left + 15, top + 17], fill=fill, outline=outline, width=2)
        pen.text((left + 24, top), text, fill=INK, font=font)
        left += 24 + int(pen.textlength(text, font=font)) + 28


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _stretch(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Every cell of a grid as a block of pixels."""
    rows = np.arange(shape[0]) * grid.shape[0] // shape[0]
    cols = np.arange(shape[1]) * grid.shape[1] // shape[1]
    return grid[rows][:, cols]
