"""Where the coded blocks of a stream lie, for attention kernels: a list on the device that only grows at its end."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onlooker.kernels.coded_rows import COLUMNS, Form
from onlooker.kvstore.arena import allocate
from onlooker.kvstore.coded import Coded

LEAST_TILES = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """The tiles of one block."""

    slot: int
    count: int
    before: int
    """Rows of all blocks before it."""


@dataclass(eq=False)
class TileTable:
    """Tiles (`coded_rows.COLUMNS`) of blocks in stream order.

    What is listed is never overwritten, so that open questions may go on reading it: where blocks leave other than from
    the front, or the list is full, it is written anew elsewhere, at the next `reserve` or `tiles`.
    """

    device: torch.device
    form: Form
    _table: Tensor = field(init=False)
    _places: dict[int, _Place] = field(init=False, default_factory=dict)
    _end: int = field(init=False, default=0)
    _rows: int = field(init=False, default=0)
    _is_stale: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._table = self._room(LEAST_TILES)

    def reserve(self, num_tokens: int, blocks: Iterable[tuple[int, Coded]]) -> None:
        """Make room for a block behind these, which are all that there are. Raises `CapacityError` when the device has
        no memory left."""
        more = len(self.form.tiles(0, num_tokens, 0))
        if self._is_stale or self._end + more > len(self._table):
            self._rewrite(blocks, more)

    def add(self, block: int, num_tokens: int) -> tuple[Tensor, int, int]:
        """List a block: the table, the row from which on whoever encodes it writes its tiles, and rows before it."""
        count = len(self.form.tiles(0, num_tokens, 0))
        self._places[block] = place = _Place(self._end, count, self._rows)
        self._end, self._rows = self._end + count, self._rows + num_tokens
        return self._table, place.slot, place.before

    def drop(self, leaving: Iterable[int]) -> None:
        """Blocks are gone. Needs no memory."""
        gone = {block for block in leaving if block in self._places}
        while gone and (first := next(iter(self._places))) in gone:
            gone.discard(first)
            del self._places[first]
        for block in gone:
            del self._places[block]
            self._is_stale = True

    def tiles(self, blocks: Iterable[tuple[int, Coded]]) -> tuple[Tensor, int]:
        """Tiles of these blocks, which are all that there are, and the rows before the first of them."""
        if self._is_stale:
            self._rewrite(blocks, 0)
        if not self._places:
            return self._table[:0], 0
        first = next(iter(self._places.values()))
        return self._table[first.slot : self._end], first.before

    def forget_all(self) -> None:
        """What is listed is of no use any more: it is written anew when it is next needed."""
        self._is_stale = True

    def num_bytes(self) -> int:
        """Bytes of the list."""
        return self._table.nbytes

    def _rewrite(self, blocks: Iterable[tuple[int, Coded]], more: int) -> None:
        entries: list[list[int]] = []
        places, rows = {}, 0
        for block, coded in blocks:
            tiles = self.form.tiles(coded.address, coded.num_tokens, rows)
            places[block] = _Place(len(entries), len(tiles), rows)
            entries += tiles
            rows += coded.num_tokens
        table = self._room(max(LEAST_TILES, 2 * (len(entries) + more)))
        if entries:
            listed = torch.tensor(entries, dtype=torch.int64)
            if self.device.type == "cuda":
                listed = listed.pin_memory()  # so that the copy is not waited for
            table[: len(entries)].copy_(listed, non_blocking=True)
        self._table, self._places, self._end, self._rows = table, places, len(entries), rows
        self._is_stale = False

    def _room(self, tiles: int) -> Tensor:
        return allocate((tiles, COLUMNS), torch.int64, self.device)
