"""What the video's encoder said of a frame, for those who ask for it token by token."""

import torch
from torch import Tensor

from onlooker.engine.seeing import Patch

CODEC = "codec"
"""The name of the extra: float32 `[tokens, 4]`, how far the picture under a token moved since the last frame that was
taken (rows, cols, in shares of the picture), how unevenly (the same unit), and the share of it for which that is known,
0 where the source says nothing."""


def told(patch: Patch, grid: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """The extra of a patch, by its newest frame."""
    record = patch.frames[-1].codec
    found = None if record is None else record.on_grid(*grid)
    if found is None:
        return {CODEC: torch.zeros(grid[0] * grid[1], 4, device=device)}
    motion, spread, known = (torch.from_numpy(part) for part in found)
    rows = torch.cat([motion, spread[..., None], known[..., None]], dim=-1)
    return {CODEC: rows.flatten(0, 1).to(device)}
