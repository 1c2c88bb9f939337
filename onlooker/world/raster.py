"""Draw tables into pictures: elementwise torch on any device, whole batches of frames at once."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from onlooker.world.faces import FACE_OUTLINE, FACE_TONES, face_tones
from onlooker.world.font import (
    CELL,
    GLYPH_COLS,
    GLYPH_FINE,
    GLYPH_PITCH,
    GLYPH_ROWS,
    PLATE_MARGIN,
    SHAPE_FINE,
    SHAPE_REACH,
    glyph_field,
    shape_fields,
)  # fmt: skip
from onlooker.world.ground import damaged, lattice, textured
from onlooker.world.lexicon import FACE_ID, LAMP_ID, RADII
from onlooker.world.script import SIGN_SLOT

DARK = 0.2
"""Brightness of the dark parts of a striped, dotted or hollow shape, as a share of its colour."""
_CHUNK_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 24}
_INK_LIMIT = 128.0
_GRAIN = 0x1B873593


class Raster(NamedTuple):
    """Pictures, and who is where in them.

    `images` is uint8 `[episodes, frames, rows, cols, 3]`; `owner` is int16 `[episodes, frames, rows, cols]`, the sprite
    slot that shows at each pixel, -1 where the background does.
    """

    images: Tensor
    owner: Tensor


def to_torch(tables: Mapping[str, np.ndarray | Tensor], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tables as tensors on `device`."""
    return {name: torch.as_tensor(value).to(device, non_blocking=True) for name, value in tables.items()}


def rasterise(
    tables: Mapping[str, np.ndarray | Tensor], rows: int = 128, cols: int = 128, *, chunk_frames: int | None = None,
    draw=None,
) -> Raster:  # fmt: skip
    """Pictures and owners of the tables of `render_tables`, on the device of the tables.

    The same tables give the same pictures whatever the chunk (and within one level on another device). Work is done
    in chunks of `chunk_frames` frames to bound memory. `draw` may be `torch.compile(draw_chunk)`, which fuses the
    passes; keep the frame count of calls constant then.
    """
    tensors = {name: torch.as_tensor(value) for name, value in tables.items()}
    lead = tensors["visible"].shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in tensors.items()}
    device = flat["x"].device
    num = int(flat["x"].shape[0])
    if chunk_frames is None:
        chunk_frames = max(1, _CHUNK_PIXELS.get(device.type, 1 << 22) // (rows * cols))
    images = torch.empty((num, rows, cols, 3), dtype=torch.uint8, device=device)
    owner = torch.empty((num, rows, cols), dtype=torch.int16, device=device)
    fields = (*_fields(str(device)), _lots(rows, cols, str(device)))
    for first in range(0, num, chunk_frames):
        part = slice(first, min(num, first + chunk_frames))
        chunk = {name: flat[name][part] for name in _USED}
        slots = tuple(range(SIGN_SLOT + 1))
        if device.type == "cpu":
            # On a GPU this look would stop the queue; on a CPU it saves the passes of empty slots.
            slots = tuple(int(slot) for slot in chunk["visible"].any(0).nonzero().flatten())
            # Frames of L0 take neither path, so that their pictures stay as they were, bit by bit.
            plain = not bool(chunk["texture"][:, 0].any()), not bool(chunk["damage"].any())
        else:
            plain = False, False
        images[part], owner[part] = (draw or draw_chunk)(chunk, fields, rows, cols, slots, plain)
    return Raster(images.unflatten(0, lead), owner.unflatten(0, lead))


_USED = (
    "visible", "x", "y", "size", "angle", "shape", "pattern", "colour", "glyphs", "gain", "noise_sigma", "noise_seed",
    "waves", "mix", "texture", "damage",
)  # fmt: skip


@cache
def _fields(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(shape distance, shape tone, glyph distance), flat, and the lattice of textures, on a device."""
    distance, tone = shape_fields()
    tones = np.concatenate((tone.reshape(-1, SHAPE_FINE, SHAPE_FINE), face_tones(SHAPE_FINE, SHAPE_REACH)))
    flat = (distance.reshape(-1), tones.reshape(-1), glyph_field().reshape(-1))
    tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in flat)
    return (*tensors, lattice(device))  # type: ignore[return-value]


def draw_chunk(
    tables: dict[str, Tensor], fields: tuple[Tensor, ...], rows: int, cols: int,
    slots: tuple[int, ...], plain: tuple[bool, bool] = (False, False),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(images `[frames, rows, cols, 3]`, owner `[frames, rows, cols]`) of tables `[frames, ...]`.

    `plain` says that no frame of the chunk has a texture, and that none is damaged.
    """
    device = tables["x"].device
    short = min(rows, cols)
    # Picture coordinates: shares of the shorter side, 0 at the centre of the frame.
    y = ((torch.arange(rows, device=device, dtype=torch.float32) + 0.5 - rows / 2) / short)[None, :, None]
    x = ((torch.arange(cols, device=device, dtype=torch.float32) + 0.5 - cols / 2) / short)[None, None, :]
    red, green, blue = _background(tables, x, y)
    if not plain[0]:
        is_textured = tables["texture"][:, 0, None, None] > 0
        grounds = textured(tables["texture"], x, y, fields[3])
        red, green, blue = (
            torch.where(is_textured, a, b) for a, b in zip(grounds, (red, green, blue), strict=True)
        )  # fmt: skip
    owner = torch.full(red.shape, -1, dtype=torch.int16, device=device)
    for slot in slots:
        dx = x - ((tables["x"][:, slot] - 0.5) * (cols / short))[:, None, None]
        dy = y - ((tables["y"][:, slot] - 0.5) * (rows / short))[:, None, None]
        paint = _sign if slot == SIGN_SLOT else _shape
        cover, tone = paint(tables, fields, slot, dx, dy, short)
        colour = tables["colour"][:, slot, :, None, None]
        if slot == SIGN_SLOT:
            light = (colour[:, 0] > _INK_LIMIT).float()
            ink = 245.0 - 235.0 * light
            shades = tuple(colour[:, c] + (ink - colour[:, c]) * tone for c in range(3))
        else:
            shades = tuple(colour[:, c] * tone for c in range(3))
        red = red + (shades[0] - red) * cover
        green = green + (shades[1] - green) * cover
        blue = blue + (shades[2] - blue) * cover
        owner = torch.where(cover > 0.5, slot, owner)
    gain = tables["gain"][:, None, None]
    if not plain[1]:
        # Another pattern than the sensor's: the grain of a frame must not cancel its noise.
        seed = tables["noise_seed"].to(torch.int32) ^ _GRAIN
        grain = torch.stack(_noise(fields[4], seed, torch.ones_like(tables["noise_sigma"])), 1)
        spoilt = damaged(torch.stack((red, green, blue), 1), tables["damage"], grain)
        red, green, blue = spoilt.unbind(1)
    noise = _noise(fields[4], tables["noise_seed"].to(torch.int32), tables["noise_sigma"])
    channels = [
        (channel * gain + extra).clamp(0.0, 255.0).round()
        for channel, extra in zip((red, green, blue), noise, strict=True)
    ]
    return torch.stack(channels, dim=-1).to(torch.uint8), owner.to(torch.int16)


def _background(tables: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Warped waves, clipped and mixed between two colours: see `scenery` for the formula."""
    waves, mix = tables["waves"][:, :, None, None], tables["mix"][:, :, None, None]

    def phase(index: int) -> Tensor:
        return x * waves[:, 3 * index] + (y * waves[:, 3 * index + 1] + waves[:, 3 * index + 2])

    first, second = torch.sin(phase(0)), torch.sin(phase(1))
    third = torch.sin(phase(2) + 1.7 * first)
    base = mix[:, 0] * first + mix[:, 1] * second + mix[:, 2] * first * second + mix[:, 3] * third
    base = base + mix[:, 4] * torch.sin(phase(3) + 1.9 * second) + mix[:, 6]
    value = (0.5 + mix[:, 5] * base).clamp(0.0, 1.0) + mix[:, 7] * torch.sin(phase(4) + third)
    low, high = mix[:, 8:11], mix[:, 11:14]
    red, green, blue = (low[:, c] + (high[:, c] - low[:, c]) * value for c in range(3))
    return red, green, blue


def _shape(
    tables: dict[str, Tensor],
    fields: tuple[Tensor, ...],
    slot: int,
    dx: Tensor,
    dy: Tensor,
    short: int,
) -> tuple[Tensor, Tensor]:
    """(cover, brightness) of one slot of shapes, looked up in the shape fields."""
    size, angle = tables["size"][:, slot, None, None], tables["angle"][:, slot, None, None]
    scale = SHAPE_FINE / (2 * SHAPE_REACH) / size
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    middle = SHAPE_FINE / 2
    u = (dx * cos + dy * sin + middle).to(torch.int32)
    v = (dy * cos - dx * sin + middle).to(torch.int32)
    shape, pattern = tables["shape"][:, slot], tables["pattern"][:, slot]
    is_face = shape == FACE_ID
    kind = torch.where(is_face, FACE_OUTLINE * 4, shape.clamp(max=LAMP_ID) * 4 + pattern)
    tone = torch.where(is_face, FACE_TONES + pattern, kind)
    inside = (u >= 0) & (u < SHAPE_FINE) & (v >= 0) & (v < SHAPE_FINE)
    inside = inside & (dx.abs() < size * 1.6) & tables["visible"][:, slot, None, None]
    place = v.clamp(0, SHAPE_FINE - 1) * SHAPE_FINE + u.clamp(0, SHAPE_FINE - 1)
    distance = fields[0][kind[:, None, None] * SHAPE_FINE**2 + place]
    cover = (distance * (size * short) + 0.5).clamp(0.0, 1.0) * inside
    lamp = (kind[:, None, None] >= LAMP_ID * 4).float()
    dark = DARK * (1 - lamp) + 0.12 * lamp
    return cover, dark + (1 - dark) * fields[1][tone[:, None, None] * SHAPE_FINE**2 + place]


def _sign(
    tables: dict[str, Tensor],
    fields: tuple[Tensor, ...],
    slot: int,
    dx: Tensor,
    dy: Tensor,
    short: int,
) -> tuple[Tensor, Tensor]:
    """(cover of the plate, ink) of the sign slot."""
    glyphs = tables["glyphs"]
    count = (glyphs > 0).sum(-1)[:, None, None]
    cell = (CELL / RADII[2]) * tables["size"][:, slot, None, None]
    # In font cells, from the left end of the text and from the top of the capitals.
    u = dx / cell + count * (GLYPH_PITCH / 2)
    v = dy / cell + GLYPH_ROWS / 2
    half_u, half_v = count * (GLYPH_PITCH / 2) - 0.5 + PLATE_MARGIN, GLYPH_ROWS / 2 + PLATE_MARGIN
    edge = torch.minimum(half_u - (dx / cell).abs(), half_v - (dy / cell).abs())
    sharp = cell * short
    cover = (edge * sharp + 0.5).clamp(0.0, 1.0) * tables["visible"][:, slot, None, None]
    place = (u / GLYPH_PITCH).floor().to(torch.int64)
    on_text = (place >= 0) & (place < count) & (v > -1) & (v < GLYPH_ROWS + 1)
    place = place.clamp(0, glyphs.shape[-1] - 1)
    code = torch.zeros_like(place)
    for index in range(glyphs.shape[-1]):
        code = torch.where(place == index, glyphs[:, index, None, None].long(), code)
    col = ((u - place * GLYPH_PITCH) * GLYPH_FINE).to(torch.int64).clamp(0, GLYPH_PITCH * GLYPH_FINE - 1)
    row = ((v + 1) * GLYPH_FINE).to(torch.int64).clamp(0, (GLYPH_ROWS + 2) * GLYPH_FINE - 1)
    index = (code * ((GLYPH_ROWS + 2) * GLYPH_FINE) + row) * (GLYPH_PITCH * GLYPH_FINE) + col
    ink = (fields[2][index] * sharp + 0.5).clamp(0.0, 1.0) * on_text
    return cover, ink


@cache
def _lots(rows: int, cols: int, device: str) -> Tensor:
    """A number for each pixel, int32 `[rows, cols]`, which wraps around.

    Made before a compiler sees it: it would take the product for an index and hold it in 64 bits.
    """
    return (torch.arange(rows * cols, dtype=torch.int32) * 0x2C1B3C6D).view(rows, cols).to(device)


def _noise(lots: Tensor, seed: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise of the three channels, in levels: a hash of (noise seed, pixel), the same on every device.

    `lots` are those of the pixels, `seed` int32 and `sigma` float32 `[frames]`.
    """
    # int32 wraps around; masks make the arithmetic shift a logical one.
    h = lots + seed[:, None, None]
    h = (h ^ ((h >> 16) & 0xFFFF)) * 0x297A2D39
    h = (h ^ ((h >> 15) & 0x1FFFF)) * 0x45D9F3B
    h = h ^ ((h >> 16) & 0xFFFF)
    a, b, c = h & 255, (h >> 8) & 255, (h >> 16) & 255
    scale = (sigma / 104.5)[:, None, None]
    return tuple((pair - 255).to(torch.float32) * scale for pair in (a + b, b + c, c + a))  # type: ignore[return-value]


assert GLYPH_COLS + 1 == GLYPH_PITCH, "glyph fields hold one blank column"
