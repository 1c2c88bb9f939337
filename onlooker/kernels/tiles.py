"""How the packed attention kernel is cut into programs: chosen by measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

SHARED_BYTES = 232_448
"""Shared memory that a program may have on Hopper."""


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
    shares: int = 32
    """Programs that lay out one segment's rows in codes, in one head."""
    share_warps: int = 4

    def shared_bytes(self, row_bytes: int) -> int:
        """What a tile of queries, and those of keys and values of all stages, take of a program's shared memory."""
        return (self.queries + 2 * self.stages * self.keys) * row_bytes


def tiles_for(num_tokens: int, in_codes: bool = False, row_bytes: int = 256, shared: int = SHARED_BYTES) -> Tiles:
    """Few tokens leave most of a GPU idle unless the keys are shared out; many fill it by themselves. `in_codes`: most
    keys lie in codes. `row_bytes`: of one head's key. Of `shared` bytes tiles of queries and keys have to take less."""
    if num_tokens <= 16 and in_codes:
        return Tiles(queries=16, keys=64, splits=8, warps=4, stages=2)
    if num_tokens <= 16:
        return Tiles(queries=16, keys=64, splits=16, warps=4, stages=3)
    if num_tokens <= 128:
        return Tiles(queries=64, keys=64, splits=8, warps=4, stages=3)
    if num_tokens <= 320:
        return Tiles(queries=128, keys=64, splits=2, warps=8, stages=3)
    large = Tiles(keys=128)
    return large if large.shared_bytes(row_bytes) <= shared else Tiles()


def shared_out(rows: Sequence[int], size: int, slow: Sequence[bool]) -> list[range]:
    """The tiles of each segment of so many rows of queries, `size` rows a tile. Those of slow segments, such as words
    of answers that read codes where they lie, come first: a launch waits for its last program."""
    given, start = [range(0)] * len(rows), 0
    for number in sorted(range(len(rows)), key=lambda one: not slow[one]):
        given[number] = range(start, start - (-rows[number] // size))
        start = given[number].stop
    return given


def shared_bytes_of(device: torch.device) -> int:
    """Shared memory that a program may have on a device."""
    if device.type != "cuda":
        return SHARED_BYTES
    from triton.runtime import driver  # Triton is not everywhere

    active: Any = driver.active
    return active.utils.get_device_properties(device.index or 0)["max_shared_mem"]
