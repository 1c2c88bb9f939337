"""What the video's encoder said of a frame, for those who ask for it token by token."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onlooker.core.contracts import CELLS, EncoderAccelerator, VisionTower
from onlooker.core.state import StreamState
from onlooker.engine.seeing import Patch

CODEC = "codec"
"""The name of the extra: float32 `[tokens, 4]`, how far the picture under a token moved since the last frame that was
taken (rows, cols, in shares of the picture), how unevenly (the same unit), and the share of it for which that is known,
0 where the source says nothing."""


def says(patch: Patch) -> bool:
    """Whether the video's encoder said how the newest frame of a patch moved."""
    record = patch.frames[-1].codec
    return record is not None and record.motion is not None


def told(patch: Patch, grid: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """The extra of a patch, by its newest frame."""
    record = patch.frames[-1].codec
    found = None if record is None else record.on_grid(*grid)
    if found is None:
        return {CODEC: torch.zeros(grid[0] * grid[1], 4, device=device)}
    motion, spread, known = (torch.from_numpy(part) for part in found)
    rows = torch.cat([motion, spread[..., None], known[..., None]], dim=-1)
    return {CODEC: rows.flatten(0, 1).to(device)}


def hand_on(
    encoder: EncoderAccelerator,
    patches: Sequence[Patch],
    working: Sequence[Mapping[str, StreamState]],
    tower: VisionTower,
    device: torch.device,
) -> None:
    """Tell an encoder that hears it what was said of each frame, patch by patch of the tower and in its order: into
    `said` of its states, and what the frame cost into `bytes_a_picture` and `intra`; one that sees pictures what it
    looks like: into `picture`."""
    for patch, states in zip(patches, working, strict=True):
        state: Any = states["encoder"]
        newest = patch.frames[-1]
        if encoder.hears_codec:
            said = told(patch, tower.grid, device)[CODEC]
            state.said = said if tower.raster is None else said[tower.raster]
            record = newest.codec
            state.bytes_a_picture = None if record is None else record.num_bytes / max(1, record.num_pictures)
            state.intra = record is not None and record.num_intra > 0
        if encoder.sees_pictures:
            state.picture = newest.brightness(*(CELLS * side for side in tower.grid)).to(device)
