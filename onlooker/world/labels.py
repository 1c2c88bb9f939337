"""What each patch of a picture shows: exact targets for training the eyes of a model."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.world.font import CELL, GLYPH_COLS, GLYPH_PITCH, GLYPH_ROWS, MAX_GLYPHS
from onlooker.world.lexicon import RADII
from onlooker.world.script import SIGN_SLOT, SLOTS


def patch_labels(
    tables: Mapping[str, np.ndarray | Tensor], owner: Tensor, patch: int = 8, *, least_share: float = 0.2,
    least_glyph_share: float = 0.3,
) -> dict[str, Tensor]:  # fmt: skip
    """Targets per patch, int64 `[episodes, frames, rows / patch, cols / patch]`, on the device of `owner`.

    `shape`: 0 background, 1..8 shapes, 9 lamp, 10 sign; `colour`: 0 none (background, sign), 1..8; both of the sprite
    that covers most of the patch, if it covers `least_share` of it. `slot`: 1 + the slot of that sprite, 0 background
    (a slot may serve several sprites, one after the other). `glyph`: 0 none, 1..36 (A..Z, 0..9): the
    character that covers most of it, if it covers `least_glyph_share` of it. `owner` is that of `rasterise`.
    Raises `InputError` when the picture is no whole number of patches.
    """
    rows, cols = owner.shape[-2:]
    if rows % patch or cols % patch:
        raise InputError(
            "the picture is no whole number of patches", given=f"{rows} x {cols} / {patch}", do="change one"
        )
    device = owner.device
    tensors = {
        name: torch.as_tensor(tables[name]).to(device) for name in ("shape", "colour_id", "glyphs", "x", "y", "size")
    }
    tiles = owner.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [..., down, patch, across, patch]
    shares = torch.stack([(tiles == slot).sum((-3, -1), dtype=torch.int32) for slot in range(SLOTS)], dim=-1)
    most, slot = shares.max(-1)
    counts = most >= least_share * patch * patch

    def of_slot(name: str) -> Tensor:
        values = tensors[name][:, :, None, None, :].expand(*shares.shape)
        return values.gather(-1, slot[..., None]).squeeze(-1).long() * counts

    glyph = _glyphs(tensors, rows, cols, patch, least_glyph_share)
    shown = shares[..., SIGN_SLOT] > 0
    return {
        "shape": of_slot("shape"),
        "colour": of_slot("colour_id"),
        "glyph": glyph * shown,
        "slot": (slot + 1) * counts,
    }


def change_frames(tables: Mapping[str, np.ndarray | Tensor], device: torch.device) -> dict[str, Tensor]:
    """When the things on show began, int64 frame numbers `[episodes, frames, slots]`, 0 where a slot shows nothing.

    `born`: the first of the given frames that shows this sprite; `since`: the first from which it has looked as it does
    now (colour, or text of a sign), frames in which it was hidden aside.
    """
    names = ("visible", "sprite", "colour_id", "glyphs")
    visible, sprite, colour, glyphs = (torch.as_tensor(tables[name]).to(device) for name in names)
    shown = visible.bool()
    text = (glyphs.long() * torch.tensor([1, 64, 64**2, 64**3], device=device)).sum(-1)
    look = colour.long()
    look = torch.cat([look[..., :SIGN_SLOT], text[..., None], look[..., SIGN_SLOT + 1 :]], dim=-1)
    frames = torch.arange(shown.shape[1], device=device)
    # [episodes, frames, earlier frames, slots]
    same = (sprite[:, :, None] == sprite[:, None]) & shown[:, None] & (frames[:, None] >= frames)[None, :, :, None]
    born = same.int().argmax(2)
    other = same & (look[:, :, None] != look[:, None])
    last_other = torch.where(other, frames[:, None], -1).amax(2, keepdim=True)
    since = (same & (frames[:, None] > last_other)).int().argmax(2)
    return {"born": born * shown, "since": since * shown}


def _glyphs(tensors: dict[str, Tensor], rows: int, cols: int, patch: int, least_share: float) -> Tensor:
    """The character whose box overlaps each patch most, from the geometry of the sign."""
    device, short = tensors["x"].device, min(rows, cols)
    glyphs = tensors["glyphs"].long()
    cell = (tensors["size"][..., SIGN_SLOT] * (CELL / RADII[2] * short))[..., None]
    count = (glyphs > 0).sum(-1, keepdim=True)
    place = torch.arange(MAX_GLYPHS, device=device)
    left = tensors["x"][..., SIGN_SLOT, None] * cols + (place * GLYPH_PITCH + 0.5 - count * (GLYPH_PITCH / 2)) * cell
    top = tensors["y"][..., SIGN_SLOT, None] * rows - cell * (GLYPH_ROWS / 2)
    across, down = (torch.arange(0, n, patch, device=device, dtype=torch.float32) for n in (cols, rows))

    def overlap(start: Tensor, length: Tensor, edges: Tensor) -> Tensor:
        low = torch.maximum(start[..., None], edges)
        high = torch.minimum((start + length)[..., None], edges + patch)
        return (high - low).clamp(min=0)

    wide = overlap(left, cell * GLYPH_COLS, across)  # [episodes, frames, 4, across]
    tall = overlap(top, cell * GLYPH_ROWS, down)[..., 0, :]  # [episodes, frames, down]
    area = tall[..., :, None, None] * wide.transpose(-1, -2)[:, :, None] * (glyphs > 0)[:, :, None, None]
    most, which = area.max(-1)
    code = glyphs[:, :, None, None].expand(*area.shape).gather(-1, which[..., None]).squeeze(-1)
    return code * (most >= least_share * patch * patch)
