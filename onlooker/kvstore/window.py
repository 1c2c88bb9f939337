"""What the stream sees while it is being watched: the prefix and the resident blocks as one slice of an arena."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.kvstore.arena import Arena
from onlooker.kvstore.blocks import Block, Offset
from onlooker.kvstore.catalog import Catalog
from onlooker.kvstore.placing import Placing
from onlooker.kvstore.rotation import Rotary, rotate, shifted

LEAST_ROWS = 64
SLACK = 8
"""An arena has room for one row more than needed for so many."""
ROWS_AT_ONCE = 4096
"""Rows times layers that are rotated by one call."""


class Window:
    """The resident blocks of one stream: rows `[head, tail)` of an arena, prefix first, then stream order.

    The position rule while watching is `pack`: a block starts where the one before it ends (or, inside a long video, as
    its clock says: see `Placing`), and the prefix ends where the first block begins, on each axis. Only distances
    matter to rotary attention, so when blocks leave, those behind them keep the rotation they were written with, and
    only what stays in front of them (the prefix, perhaps sinks and old text) is rotated anew from its raw keys and
    written before the first block behind. When positions would pass `position_limit` (or twice the live positions, if
    those are more), all resident keys are rotated anew from their raw keys, starting at zero, in a fresh arena. Raw
    keys are moved, never changed. Behind a long video that has lost its beginning, text and further videos stay where
    they were, so that their distance is that of the whole video.

    Whatever needs memory comes first in every act, and what changes the window needs none: an act that fails for want
    of memory has done nothing.
    """

    def __init__(self, spec: ModelSpec, rotary: Rotary, position_limit: int) -> None:
        self.spec, self.rotary, self.position_limit = spec, rotary, position_limit
        self.arena = Arena(spec, 0)
        self.head = self.tail = 0
        self.prefix: Block | None = None
        self.blocks: dict[int, Block] = {}
        """Resident blocks in stream order, prefix included."""
        self.rows: Catalog[int] = Catalog()
        """First row of each resident block, counted so that it stays when all rows move: see `row_of`."""
        self.moved = 0
        """By how many rows all of them have moved to the front since `rows` was written."""
        self.offsets: dict[int, Offset] = {}
        """Position offset of each resident block."""
        self.placing = Placing(spec.position_axes)
        """Where the next block starts."""

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return self.tail - self.head

    @property
    def next_offset(self) -> int:
        """The position behind everything, on the axis that has come furthest."""
        return max(self.placing.reach)

    def row_of(self, block: int) -> int:
        """First arena row of a resident block."""
        return self.rows[block] - self.moved

    def reserve(self, block: Block, most_rows: int) -> None:
        """Make room for a block behind the tail. The caller has checked that it fits into `most_rows`.

        Raises `CapacityError` when the device has no memory left.
        """
        needed = self.num_rows + block.num_tokens
        if self.tail + block.num_tokens > self.arena.capacity or self.arena.capacity > most_rows:
            wanted = self.arena.capacity
            # Grow only when little would be won by moving the live rows to the front: a window that slides settles at
            # an eighth more rows than it holds, and moves them once for every eighth that comes.
            if needed > self.arena.capacity or self.head * SLACK < needed:
                wanted = max(needed * (SLACK + 1) // SLACK, LEAST_ROWS)
            # Below the budget, leave a little for the signals, which grow with every block.
            wanted = wanted if wanted <= most_rows else max(needed, most_rows * 7 // 8)
            self._move(wanted)
        for base, reach, start in zip(self._base(), self.placing.reach, self.placing.peek(block), strict=True):
            # Twice the live positions, so that rotating them anew is paid for by as many new ones.
            if base > 0 and start + block.extent > max(self.position_limit, 2 * (reach - base)):
                self._rotate_anew()
                break

    def append(self, block: Block, *, is_prefix: bool = False) -> None:
        """The rows behind the tail have become a block."""
        if is_prefix:
            self.prefix = block
        self.blocks[block.id] = block
        self.rows[block.id] = self.tail + self.moved
        self.offsets[block.id] = self.placing.place(block)
        self.tail += block.num_tokens

    def remove(self, leaving: set[int]) -> None:
        """Blocks leave the window (they were parked or forgotten). Never the prefix.

        The newest of all leave without any need of memory, unless an open question reads them. Raises `CapacityError`
        when the device has no memory left for what others need.
        """
        if not leaving:
            return
        if leaving == set(itertools.islice(reversed(self.blocks), len(leaving))) and not self.arena.is_read(
            min(self.row_of(block) for block in leaving), self.tail
        ):
            self._retract(leaving)
            return
        gone, anchors, blocks = [], [], iter(self.blocks.values())
        while len(gone) < len(leaving):
            block = next(blocks)
            (gone if block.id in leaving else anchors).append(block)
        after = next(blocks, None)
        if after is None and len(anchors) > int(self.prefix is not None):
            self._repack(anchors)
        else:
            self._slide(gone, anchors, after)

    def read(self, blocks: list[int]) -> slice | None:
        """The arena rows of these blocks if they are exactly what is resident, else None."""
        return slice(self.head, self.tail) if blocks == list(self.blocks) else None

    def twin(self) -> "Window":
        """An independent copy."""
        twin = Window(self.spec, self.rotary, self.position_limit)
        twin.arena = Arena(self.spec, self.num_rows)
        twin.arena.copy_rows(self.arena, self.head, self.tail, 0)
        twin.tail, twin.placing, twin.prefix = self.num_rows, self.placing.copy(), self.prefix
        twin.blocks, twin.offsets = dict(self.blocks), dict(self.offsets)
        twin.rows, twin.moved = self.rows.copy(), self.moved + self.head
        return twin

    def _base(self) -> Offset:
        return self.offsets[next(iter(self.offsets))] if self.offsets else (0,) * self.spec.position_axes

    def _drop(self, leaving: set[int]) -> None:
        for block in leaving:
            del self.blocks[block], self.offsets[block]
            self.rows.remove(block)

    def _retract(self, leaving: set[int]) -> None:
        """The newest blocks are gone: the next one takes their place."""
        self.tail = min(self.row_of(block) for block in leaving)
        self._drop(leaving)
        self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)

    def _slide(self, gone: list[Block], anchors: list[Block], after: Block | None) -> None:
        """Some blocks are gone: what was before the last of them, the anchors, moves up to what comes after."""
        num_left, size = len(self.blocks) - len(gone), sum(block.num_tokens for block in anchors)
        end = self.tail if after is None else self.row_of(after.id)
        head, placing = end - size, Placing(self.spec.position_axes)
        offsets = [placing.place(block) for block in anchors]
        come, goal = (
            (self.placing.reach, placing.reach) if after is None else (self.offsets[after.id], placing.peek(after))
        )
        steps = [place - own for place, own in zip(come, goal, strict=True)]
        offsets = [tuple(map(sum, zip(offset, steps, strict=True))) for offset in offsets]
        rows: list[Tensor] = []
        if anchors:
            places = [slice(self.row_of(block.id), self.row_of(block.id) + block.num_tokens) for block in anchors]
            several = len(places) > 1
            raw, values = (
                torch.cat([tensor[:, :, place] for place in places], dim=2) if several else tensor[:, :, places[0]]
                for tensor in (self.arena.keys, self.arena.values)
            )
            if not several and head < places[0].stop:  # the new rows lie on the old ones
                raw, values = raw.clone(), values.clone()
            rows = [raw, values, torch.empty_like(raw)]
            self._rotate(raw, rows[2], anchors, offsets)
        arena = self.arena
        if anchors and arena.is_read(head, end):
            # Copy on write: an open question reads the rows that the anchors are about to take.
            arena = Arena(self.spec, arena.capacity)
            arena.copy_rows(self.arena, end, self.tail, size)
        self._drop({block.id for block in gone})
        self.head = head
        if arena is not self.arena:
            self._settle(arena, head)
        if anchors:
            for tensor, moved_rows in zip(arena.tensors, rows, strict=True):
                tensor[:, :, self.head : self.head + size] = moved_rows
        row = self.head
        for block, offset in zip(anchors, offsets, strict=True):
            self.rows[block.id], self.offsets[block.id] = row + self.moved, offset
            row += block.num_tokens
        if len(anchors) > int(self.prefix is not None):
            self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)
        else:
            self.placing.drop_oldest(gone, num_left - len(anchors), after)

    def _rotate_anew(self) -> None:
        """Give out positions from zero again."""
        self._repack(list(self.blocks.values()))

    def _repack(self, kept: list[Block]) -> None:
        """These blocks only, in a fresh arena, at positions from zero: every key is rotated from its raw key."""
        arena, rows, offsets = Arena(self.spec, self.arena.capacity), [], []
        row, placing = 0, Placing(self.spec.position_axes)
        for block in kept:
            rows.append(row)
            offsets.append(placing.place(block))
            row += block.num_tokens
        for first, last in _neighbours([self.row_of(block.id) for block in kept], kept):
            start, end = self.row_of(kept[first].id), self.row_of(kept[last].id) + kept[last].num_tokens
            arena.copy_rows(self.arena, start, end, rows[first])
        if kept:
            self._rotate(arena.keys[:, :, :row], arena.rotated[:, :, :row], kept, offsets)
        self.arena, self.head, self.tail, self.placing = arena, 0, row, placing
        names = [block.id for block in kept]
        self.blocks = dict(zip(names, kept, strict=True))
        self.rows, self.moved, self.offsets = Catalog(), 0, dict(zip(names, offsets, strict=True))
        for name, first in zip(names, rows, strict=True):
            self.rows[name] = first

    def _rotate(self, raw: Tensor, into: Tensor, blocks: list[Block], offsets: list[Offset]) -> None:
        """Rotate the raw keys of neighbouring blocks, `[layers, kv_heads, rows, head_dim]`, into a tensor like it."""
        cos, sin = self.rotary(shifted([block.positions for block in blocks], offsets))
        # A short prefix, which moves at every frame, in one go; much in bites, to bound the temporary copies.
        bite = max(1, ROWS_AT_ONCE // max(1, cos.shape[0]))
        for first in range(0, self.spec.num_layers, bite):
            some = slice(first, first + bite)
            rotate(raw[some], cos, sin, into[some])

    def _move(self, capacity: int) -> None:
        """Bring the live rows to the front, of this arena if it is of the size and unread, else of another."""
        if capacity == self.arena.capacity and not self.arena.readers:
            self.arena.move_rows(self.head, self.tail, 0)
            self._settle(self.arena, self.head)
        else:
            arena = Arena(self.spec, capacity)
            arena.copy_rows(self.arena, self.head, self.tail, 0)
            self._settle(arena, self.head)

    def _settle(self, arena: Arena, shift: int) -> None:
        """The live rows now lie `shift` rows further up, in `arena`."""
        self.arena = arena
        self.head, self.tail = 0, self.tail - shift
        self.moved += shift

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Live rows of raw keys, values and rotated keys, each `[layers, kv_heads, rows, head_dim]`."""
        keys, values, rotated = (tensor[:, :, self.head : self.tail] for tensor in self.arena.tensors)
        return keys, values, rotated


def _neighbours(rows: list[int], blocks: list[Block]) -> Iterator[tuple[int, int]]:
    """(first, last) of every run of blocks whose rows lie side by side."""
    first = 0
    for number, block in enumerate(blocks):
        if number + 1 == len(blocks) or rows[number] + block.num_tokens != rows[number + 1]:
            yield first, number
            first = number + 1
