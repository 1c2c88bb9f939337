"""What the stream sees while it is being watched: the prefix and the resident blocks as one slice of an arena."""

import itertools

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.kvstore.arena import Arena
from onlooker.kvstore.blocks import Block
from onlooker.kvstore.rotation import Rotary, rotate, shifted

LEAST_ROWS = 64
ROWS_AT_ONCE = 4096
"""Rows times layers that are rotated by one call."""


class Window:
    """The resident blocks of one stream: rows `[head, tail)` of an arena, prefix first, then stream order.

    The position rule while watching is `pack`: a block starts where the one before it ends, and the prefix ends where
    the first block begins. Only distances matter to rotary attention, so when the oldest blocks leave, the others keep
    the rotation they were written with, and only the prefix is rotated anew (from raw keys) and written in front of the
    new first block. When positions would pass `position_limit` (or twice the live positions, if those are more), or a
    block leaves from the middle, all resident keys are rotated anew from their raw keys, starting at zero. Raw keys are
    moved, never changed.
    """

    def __init__(self, spec: ModelSpec, rotary: Rotary, position_limit: int) -> None:
        self.spec, self.rotary, self.position_limit = spec, rotary, position_limit
        self.arena = Arena(spec, 0)
        self.head = self.tail = 0
        self.prefix: Block | None = None
        self.blocks: dict[int, Block] = {}
        """Resident blocks in stream order, prefix included."""
        self.rows: dict[int, int] = {}
        """First arena row of each resident block."""
        self.offsets: dict[int, int] = {}
        """Position offset of each resident block."""
        self.next_offset = 0

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return self.tail - self.head

    def reserve(self, num_tokens: int, extent: int, most_rows: int) -> None:
        """Make room for a block behind the tail. The caller has checked that it fits into `most_rows`."""
        needed = self.num_rows + num_tokens
        if self.tail + num_tokens > self.arena.capacity or self.arena.capacity > most_rows:
            wanted = self.arena.capacity
            # Grow only when little would be won by moving the live rows to the front: a window that slides settles at
            # a quarter more rows than it holds, and moves them once for every quarter that comes.
            if self.head * 4 < needed:
                wanted = max(needed * 5 // 4, LEAST_ROWS)
            # Below the budget, leave a little for the signals, which grow with every block.
            wanted = wanted if wanted <= most_rows else max(needed, most_rows * 7 // 8)
            self._move(slice(self.head, self.tail), self.num_rows, wanted)
        live = self.next_offset - self._base()
        # Twice the live positions, so that rotating them anew is paid for by as many new ones.
        if self._base() > 0 and self.next_offset + extent > max(self.position_limit, 2 * live):
            self._rotate_anew()

    def append(self, block: Block, *, is_prefix: bool = False) -> None:
        """The rows behind the tail have become a block."""
        if is_prefix:
            self.prefix = block
        self.blocks[block.id] = block
        self.rows[block.id], self.offsets[block.id] = self.tail, self.next_offset
        self.tail += block.num_tokens
        self.next_offset += block.extent

    def remove(self, leaving: set[int]) -> None:
        """Blocks leave the window (they were parked or forgotten). Never the prefix."""
        if not leaving:
            return
        first = int(self.prefix is not None)
        oldest = set(itertools.islice(self.blocks, first, first + len(leaving)))
        num_rows = sum(self.blocks[block].num_tokens for block in leaving)
        for block in leaving:
            del self.blocks[block], self.rows[block], self.offsets[block]
        if leaving == oldest:
            self._slide(num_rows)
        else:
            self._squeeze()

    def read(self, blocks: list[int]) -> slice | None:
        """The arena rows of these blocks if they are exactly what is resident, else None."""
        return slice(self.head, self.tail) if blocks == list(self.blocks) else None

    def twin(self) -> "Window":
        """An independent copy."""
        twin = Window(self.spec, self.rotary, self.position_limit)
        twin.arena = Arena(self.spec, self.num_rows)
        twin.arena.copy_rows(self.arena, slice(self.head, self.tail), 0, self.num_rows)
        twin.tail, twin.next_offset, twin.prefix = self.num_rows, self.next_offset, self.prefix
        twin.blocks, twin.offsets = dict(self.blocks), dict(self.offsets)
        twin.rows = {block: row - self.head for block, row in self.rows.items()}
        return twin

    def _base(self) -> int:
        return self.offsets[next(iter(self.offsets))] if self.offsets else 0

    def _slide(self, num_rows: int) -> None:
        """The oldest blocks are gone: their rows are free, and the prefix moves up behind them."""
        prefix = self.prefix
        size = prefix.num_tokens if prefix else 0
        old, new = slice(self.head, self.head + size), self.head + num_rows
        if prefix and self.arena.is_read(new, new + size):
            # Copy on write: an open question reads the rows that the prefix is about to take.
            fresh = Arena(self.spec, self.arena.capacity)
            rest = self.tail - new - size
            fresh.copy_rows(self.arena, old, 0, size)
            fresh.copy_rows(self.arena, slice(new + size, self.tail), size, rest)
            self._settle(fresh, new)
        elif prefix:
            for tensor in (self.arena.keys, self.arena.values):
                tensor[:, :, new : new + size] = tensor[:, :, old].clone()
            self.head = new
        else:
            self.head = new
        if prefix:
            self.rows[prefix.id] = self.head
            later = list(self.blocks)[1:2]
            first = self.offsets[later[0]] if later else prefix.extent
            self.offsets[prefix.id] = first - prefix.extent
            self._rotate([prefix], self.head)
        elif not self.blocks:
            self.head = self.tail = 0 if not self.arena.readers else self.tail
        if len(self.blocks) == (prefix is not None):
            self.next_offset = prefix.extent if prefix else 0

    def _squeeze(self) -> None:
        """Blocks left from the middle: pack the rows of the others and rotate them anew."""
        device, kept = self.spec.device, list(self.blocks.values())
        starts = torch.tensor([self.rows[block.id] for block in kept])
        counts = torch.tensor([block.num_tokens for block in kept])
        before = counts.cumsum(0) - counts
        index = torch.arange(int(counts.sum())) + torch.repeat_interleave(starts - before, counts)
        arena = self.arena if not self.arena.readers else Arena(self.spec, self.arena.capacity)
        arena.copy_rows(self.arena, index.to(device), 0, len(index))
        self.arena, self.head, self.tail = arena, 0, len(index)
        self.rows = dict(zip(self.blocks, before.tolist(), strict=True))
        self._rotate_anew()

    def _rotate_anew(self) -> None:
        """Give out positions from zero again and rotate every resident key from its raw key."""
        if self.arena.is_read(self.head, self.tail):
            self._move(slice(self.head, self.tail), self.num_rows, self.arena.capacity)
        offset = 0
        for block in self.blocks.values():
            self.offsets[block.id] = offset
            offset += block.extent
        self.next_offset = offset
        if self.blocks:
            self._rotate(list(self.blocks.values()), self.head)

    def _rotate(self, blocks: list[Block], start: int) -> None:
        """Write the rotated keys of neighbouring blocks that begin at row `start`."""
        offsets = [self.offsets[block.id] for block in blocks]
        cos, sin = self.rotary(shifted([block.positions for block in blocks], offsets))
        rows = slice(start, start + cos.shape[0])
        # A short prefix, which moves at every frame, in one go; much in bites, to bound the temporary copies.
        bite = max(1, ROWS_AT_ONCE // max(1, cos.shape[0]))
        for first in range(0, self.spec.num_layers, bite):
            some = slice(first, first + bite)
            self.arena.rotated[some, :, rows] = rotate(self.arena.keys[some, :, rows], cos, sin)

    def _move(self, rows: slice, count: int, capacity: int) -> None:
        """Bring the live rows to the front, of this arena if it is of the size and unread, else of another."""
        same = capacity == self.arena.capacity and not self.arena.readers
        arena = self.arena if same else Arena(self.spec, capacity)
        arena.copy_rows(self.arena, rows, 0, count)
        self._settle(arena, rows.start)

    def _settle(self, arena: Arena, shift: int) -> None:
        """The live rows now lie `shift` rows further up, in `arena`."""
        self.arena = arena
        self.head, self.tail = 0, self.tail - shift
        self.rows = {block: row - shift for block, row in self.rows.items()}

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Live rows of raw keys, values and rotated keys, each `[layers, kv_heads, rows, head_dim]`."""
        keys, values, rotated = (tensor[:, :, self.head : self.tail] for tensor in self.arena.tensors)
        return keys, values, rotated
