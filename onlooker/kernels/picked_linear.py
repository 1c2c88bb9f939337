"""A linear layer of some rows: gathered as they are read, instead of copied side by side first.

Chosen rows of a vision step are too many for the small tiles of a library and too few to fill its large ones evenly:
the product of queries and values of SigLIP-so400m (16 streams, 2912 rows, 1152 to 2304 columns) ran at half the rate of
the others. Which way is fastest depends on rows and columns: `python -m benchmarks.encode_streams` times them all.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from onlooker.kernels.rows import Kernels, gather_rows


@dataclass(frozen=True)
class Tile:
    """Shape of one program."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int


TILES = {
    "wide": Tile(128, 256, 64, 8, 4),
    "square": Tile(128, 128, 64, 8, 3),
    "small": Tile(64, 64, 128, 4, 3),
}
"""For many rows, and for those of one stream."""
WAYS = ("torch", *TILES)
"""A gather before the library's product, or our kernel with one of its tiles."""


def picked_linear(tokens: Tensor, flat: Tensor, weight: Tensor, bias: Tensor, way: str, kernels: Kernels) -> Tensor:
    """`linear(tokens[flat])`, `[rows, width]`, of contiguous `tokens` `[tokens, dim]`, `weight` `[width, dim]` and bias
    `[width]`; `way` is one of `WAYS`, without kernels there is but one."""
    if kernels is None or way == "torch":
        return F.linear(gather_rows(tokens, flat, kernels), weight, bias)
    from onlooker.kernels import _heads_triton

    kernel: Any = _heads_triton.picked_linear
    tile, (width, dim) = TILES[way], weight.shape
    out = tokens.new_empty(len(flat), width)
    kernel[(-(-len(flat) // tile.rows) * -(-width // tile.cols),)](
        tokens,
        flat,
        weight,
        bias,
        out,
        len(flat),
        width,
        dim,
        M=tile.rows,
        N=tile.cols,
        K=tile.depth,
        EVEN=dim % tile.depth == 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
