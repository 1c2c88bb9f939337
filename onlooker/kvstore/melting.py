"""Neighbouring blocks of which only some rows stay, others in every layer and head.

The rows of such blocks lie side by side as one run. Rotated as they were, so that a run reaches as far as its blocks
did; or packed: the places that were lost are closed, and the run is as long as what is left of it. The blocks stay what
they were to policies and citations, with their times; those of which no row is left are forgotten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.kvstore.blocks import Block, Offset

Pick = Callable[[Tensor, Tensor, list[int]], Tensor]
"""Keys and values `[layers, kv_heads, rows, head_dim]` of neighbouring blocks and the rows of each, to the rows that
stay: int64 `[layers, kv_heads, kept]`, ascending along rows."""


@dataclass(frozen=True, eq=False)
class Melted:
    """Whose rows a run holds."""

    blocks: tuple[int, ...]
    """In stream order."""
    owners: Tensor
    """The place of each row's block among `blocks`, int32 `[layers, kv_heads, rows]`, on the device."""
    packed: "Packed | None" = None
    """Where its rows came from, if they were moved together."""

    def shares(self) -> list[float]:
        """How many rows each block has, mean over layers and heads. Waits for the device."""
        layers, heads, _ = self.owners.shape
        counts = torch.bincount(self.owners.flatten(), minlength=len(self.blocks))
        return [count / (layers * heads) for count in counts.tolist()]


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of a run that were moved together: every time from where they were written, so that nothing is rotated
    twice."""

    written: Tensor
    """Their keys as they were written, `[layers, kv_heads, rows, head_dim]`."""
    places: Tensor
    """Where that was, on the first axis, int64 `[layers, kv_heads, rows]`, ascending along rows."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.written.nbytes + self.places.nbytes

    def picked(self, index: Tensor) -> "Packed":
        """Some of the rows."""
        keys = self.written.gather(2, index[..., None].expand(-1, -1, -1, self.written.shape[3]))
        return Packed(keys, self.places.gather(2, index))

    def ends(self) -> Tensor:
        """How far each row lies before the last one of its head once they are packed, int64 `[layers, kv_heads, rows]`:
        neighbours that were further apart are one step apart, and rows of one place stay together."""
        steps = self.places.diff(dim=-1).clamp(max=1).cumsum(-1)
        steps = torch.nn.functional.pad(steps, (1, 0))
        return steps[..., -1:] - steps


def joined_rows(parts: Sequence[Packed]) -> Packed:
    """Rows of neighbouring blocks, one behind the other."""
    keys, places = torch.cat([part.written for part in parts], dim=2), torch.cat([part.places for part in parts], dim=2)
    return Packed(keys, places)


def whole_counts(shares: Sequence[float]) -> list[int]:
    """Whole numbers near these, of the same sum."""
    counts, told, exact = [], 0, 0.0
    for share in shares:
        exact += share
        counts.append(round(exact) - told)
        told += counts[-1]
    return counts


def check_pick(index: Tensor, layers: int, heads: int, rows: int) -> None:
    """Raise `InputError` unless these are rows that may stay. Waits for the device."""
    if index.ndim != 3 or index.shape[:2] != (layers, heads) or index.dtype != torch.int64 or not index.shape[2]:
        given, do = f"{index.dtype} {list(index.shape)}", f"int64 [{layers}, {heads}, kept], one row or more"
        raise InputError("the memory picks rows in another form", given=given, do=do)
    least, most = index[..., 0].min().item(), index[..., -1].max().item()
    if least < 0 or most >= rows or not bool((index.diff(dim=-1) > 0).all()):
        do = "ascending, each once"
        raise InputError("the memory picks rows that are not there", given=f"{least} to {most} of {rows}", do=do)


def joined(run: Sequence[Block], offsets: Sequence[Offset], num_rows: int) -> Block:
    """The block that stands for a run in the window, once so many rows are left.

    It reaches as far as the run does, and has the run's clock if all of it is of one video. Its tokens have no
    positions of their own any more: whatever reads them turns all of them by one step.
    """
    first, clocks = run[0], [block.clock for block in run]
    if None not in clocks:
        times = [clock - clocks[0] for clock in clocks if clock is not None and clocks[0] is not None]
        extent, clock = max(times[-1] + 1, *(block.extent for block in run)), first.clock
    else:
        ends = [max(place) + block.extent for place, block in zip(offsets, run, strict=True)]
        extent, clock = max(ends) - min(offsets[0]), None
    return Block(first.id, num_rows, extent, first.positions[:, :0], clock, offsets[0])


def last_place(newest: Block, known: Melted | None) -> int:
    """Where the last row of a block lies on the first axis, from its start on. Waits for the device."""
    if known is not None and known.packed is not None:
        return int(known.packed.ends().max())
    return int(newest.positions[0].max())


def shortened(block: Block, offset: Offset, newest: Block, last: int, beyond: int, length: int) -> Block:
    """A block that stood at an offset, once its rows are moved together and reach `length` far on the first axis, up to
    the place `last`; the newest of what it is made of reaches `beyond` further. What is part of a video begins with a
    later clock then."""
    start = last - length + 1
    moved = start - offset[0]
    if block.clock is None:
        places = tuple(place + moved for place in offset)
        return replace(block, extent=length + beyond, written=places)
    clock, places = block.clock + moved, (start, *offset[1:])
    return replace(block, extent=max(length, newest.extent), clock=clock, written=places)
