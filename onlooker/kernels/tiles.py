"""How the packed attention kernel is cut into programs: chosen by measurement."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiles:
    """How the attention kernel is cut: chosen by measurement, see `tiles_for`."""

    queries: int = 128
    """Rows of queries in a tile (a token is as many rows as query heads share a key head)."""
    keys: int = 64
    splits: int = 1
    """Programs that share the keys of one tile; a power of two."""
    warps: int = 8
    stages: int = 3
    shares: int = 16
    """Programs that lay out one segment's rows in codes, in one head."""
    share_warps: int = 8


def tiles_for(num_tokens: int, in_codes: bool = False) -> Tiles:
    """Few tokens leave most of a GPU idle unless the keys are shared out; many fill it by themselves. `in_codes`: most
    keys lie in codes."""
    if num_tokens <= 16 and in_codes:
        return Tiles(queries=16, keys=64, splits=8, warps=4, stages=2)
    if num_tokens <= 16:
        return Tiles(queries=16, keys=64, splits=16, warps=4, stages=3)
    if num_tokens <= 128:
        return Tiles(queries=64, keys=64, splits=8, warps=4, stages=3)
    if num_tokens <= 320:
        return Tiles(queries=128, keys=64, splits=2, warps=8, stages=3)
    return Tiles()
