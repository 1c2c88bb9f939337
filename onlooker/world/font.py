"""A 5x7 bitmap font and the distance fields that shapes, patterns and glyphs are drawn from (numpy only)."""

from functools import cache

import numpy as np

from onlooker.world.lexicon import LAMP_ID, PATTERNS

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""Glyph id `i + 1` is `CHARACTERS[i]` (0 is no glyph)."""
GLYPH_ROWS, GLYPH_COLS, GLYPH_PITCH = 7, 5, 6
MAX_GLYPHS = 4
"""Most characters on one sign."""
CELL = 0.0119
"""Side of one font cell, as a share of the shorter side of the frame (1.5 pixels of 128)."""
PLATE_MARGIN = 1.6
"""Free border of a plate, in font cells."""

# One hexadecimal digit pair per row, five bits each, top row first.
_BITS = {
    "A": "0e11111f111111", "B": "1e11111e11111e", "C": "0e11101010110e", "D": "1e11111111111e", "E": "1f10101e10101f",
    "F": "1f10101e101010", "G": "0e11101713110f", "H": "1111111f111111", "I": "0e04040404040e", "J": "0702020202120c",
    "K": "11121418141211", "L": "1010101010101f", "M": "111b1515111111", "N": "11191915131311", "O": "0e11111111110e",
    "P": "1e11111e101010", "Q": "0e11111115120d", "R": "1e11111e141211", "S": "0f10100e01011e", "T": "1f040404040404",
    "U": "1111111111110e", "V": "11111111110a04", "W": "1111111515150a", "X": "11110a040a1111", "Y": "11110a04040404",
    "Z": "1f01020408101f", "0": "0e11131519110e", "1": "040c040404040e", "2": "0e11010204081f", "3": "1f02040201110e",
    "4": "02060a121f0202", "5": "1f101e0101110e", "6": "0608101e11110e", "7": "1f010204080808", "8": "0e11110e11110e",
    "9": "0e11110f01020c",
}  # fmt: skip


@cache
def glyph_bitmaps() -> np.ndarray:
    """bool `[37, 7, 5]`: the bitmap of every glyph id (row 0 of the first axis is blank)."""
    out = np.zeros((len(CHARACTERS) + 1, GLYPH_ROWS, GLYPH_COLS), dtype=bool)
    for index, char in enumerate(CHARACTERS):
        rows = bytes.fromhex(_BITS[char])
        out[index + 1] = [[row >> (4 - col) & 1 for col in range(GLYPH_COLS)] for row in rows]
    return out


def glyph_codes(text: str) -> list[int]:
    """Glyph ids of `text` in capitals, at most four."""
    return [CHARACTERS.index(char) + 1 for char in text.upper()[:MAX_GLYPHS]]


GLYPH_FINE = 8
"""Samples per font cell of the glyph field."""


@cache
def glyph_field() -> np.ndarray:
    """float32 `[37, 9 * 8, 6 * 8]`: signed distance to the ink in font cells, positive inside.

    Each glyph has one blank row above and below it and half a blank column at either side.
    """
    fine = GLYPH_FINE
    rows, cols = (GLYPH_ROWS + 2) * fine, GLYPH_PITCH * fine
    y = (np.arange(rows) + 0.5) / fine - 1.0
    x = (np.arange(cols) + 0.5) / fine - 0.5
    bitmaps = glyph_bitmaps()
    field = np.full((len(bitmaps), rows, cols), -1.0, dtype=np.float32)
    cell_y, cell_x = np.mgrid[-1 : GLYPH_ROWS + 1, -1 : GLYPH_COLS + 1]
    for index, bitmap in enumerate(bitmaps):
        ink = np.pad(bitmap, 1)
        box = np.maximum(
            np.abs(y[:, None, None, None] - cell_y - 0.5), np.abs(x[None, :, None, None] - cell_x - 0.5)
        )  # [rows, cols, 9, 7]: box distance to every cell centre
        inside = np.where(ink, 0.5 - box, -1.0).max(axis=(2, 3))
        outside = np.where(ink, 1.0, box - 0.5).min(axis=(2, 3))
        field[index] = np.where(inside > 0, outside, inside)
    return field


SHAPE_FINE = 192
"""Side of a shape field, in samples."""
SHAPE_REACH = 1.12
"""Half extent of a shape field, in radii."""


@cache
def shape_fields() -> tuple[np.ndarray, np.ndarray]:
    """(distance, tone), float32 `[10, 4, 192, 192]` by shape id and pattern.

    `distance` is in radii and positive inside; `tone` is 1 where the full colour shows and 0 where its dark one does.
    """
    axis = ((np.arange(SHAPE_FINE) + 0.5) / SHAPE_FINE * 2 - 1) * SHAPE_REACH
    y, x = np.meshgrid(axis, axis, indexing="ij")
    distance = np.full((LAMP_ID + 1, len(PATTERNS), SHAPE_FINE, SHAPE_FINE), -1.0, dtype=np.float32)
    tone = np.ones_like(distance)
    for shape in range(1, LAMP_ID + 1):
        field = _shape(shape, x, y)
        distance[shape] = field
        tone[shape, 1] = np.sin(y * 7.4 + 0.6) > -0.25
        tone[shape, 2] = ((x / 0.56 + 0.5) % 1 - 0.5) ** 2 + ((y / 0.56 + 0.5) % 1 - 0.5) ** 2 > 0.075
        tone[shape, 3] = field < 0.3
    lit = 0.66 - np.hypot(x, y)
    tone[LAMP_ID] = np.clip(lit * 14 + 0.5, 0, 1)
    # A box of three by three softens the tone so that sampling the nearest entry does not flicker when a shape moves.
    for axis_index in (2, 3):
        tone = (np.roll(tone, 1, axis_index) + tone + np.roll(tone, -1, axis_index)) / 3
    return distance, np.ascontiguousarray(tone, dtype=np.float32)


def _shape(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance-like field of one shape, positive inside."""
    radius = np.hypot(x, y)
    match shape:
        case 1:
            return 1.0 - radius
        case 2:
            return 0.86 - np.maximum(abs(x), abs(y))
        case 3:
            return _polygon(x, y, [(-0.98, 0.82), (0.98, 0.82), (0.0, -0.98)])
        case 4:
            turns = np.arange(10) * np.pi / 5
            reach = np.where(np.arange(10) % 2 == 0, 1.08, 0.48)
            return _polygon(x, y, list(zip(reach * np.sin(turns), -reach * np.cos(turns) + 0.05, strict=True)))
        case 5:
            return 0.27 - abs(radius - 0.73)
        case 6:
            bar, reach = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
            return np.minimum(0.32 - bar, 0.98 - reach)
        case 7:
            return (1.02 - abs(x) * 1.25 - abs(y)) / np.hypot(1.25, 1.0)
        case 8:
            side = np.minimum(0.52 - np.hypot(abs(x) - 0.47, y + 0.4), 1.0)
            body = _polygon(x, y, [(-0.93, -0.18), (0.93, -0.18), (0.0, 0.98)])
            return np.maximum(side, body)
        case _:
            return 0.98 - np.maximum(abs(x), abs(y))


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance to a polygon, positive inside."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * ex + (y - y0) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * ex, y - y0 - along * ey))
        crosses = ((y0 > y) != (y1 > y)) & (x < ex * (y - y0) / (ey if ey else 1.0) + x0)
        inside ^= crosses
    return np.where(inside, nearest, -nearest)
