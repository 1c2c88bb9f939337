"""Several blocks of one stream read in one pass: written as one chunk, and sealed one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from onlooker.core.spans import Span
from onlooker.kvstore.blocks import Block
from onlooker.kvstore.catalog import Spans
from onlooker.kvstore.chunk import Chunk
from onlooker.kvstore.question import Held
from onlooker.kvstore.rotation import moved

if TYPE_CHECKING:
    from onlooker.kvstore.store import KVStore


def may_read_together(store: "KVStore") -> bool:
    """Whether blocks that are read in one pass see what they would see one by one: not where the earlier ones would
    lie in codes by then, nor where a budget has to refuse the right one of them, nor where queries are wanted."""
    return store.device_codec.plain and store.device_budget_bytes is None and not store.num_queries


@dataclass(eq=False)
class _Part:
    """One block's share of the chunk, as the store seals it."""

    raw: Tensor
    queries: Tensor | None = None


class Together:
    """The next blocks of a store. Read `chunk` in one pass; then `seal` as many as are wanted, in order.

    Between two seals the store is as after the last one: it can be asked, forked and saved. Whoever writes into it, or
    carries out a plan that changes something, ends this: `is_open` is false then, and what was not sealed was never
    there.
    """

    def __init__(self, store: "KVStore", coming: Sequence[Held]) -> None:
        """Raises as `KVStore.begin` does; nothing is changed then."""
        self._store, self._coming = store, coming
        placing, device = store._window.placing.copy(), store.spec.device
        self._blocks: list[Block] = []
        for number, held in enumerate(coming):
            written, positions = placing.peek(held.clock), held.positions.to(device, torch.int64)
            count = positions.shape[1]
            block = Block(store._next_id + number, count, held.extent, positions, held.clock, written)
            placing.place(block)
            self._blocks.append(block)
        start = tuple(-place for place in self._blocks[0].written)
        places = torch.cat([moved(moved(block.positions, block.written), start) for block in self._blocks], dim=1)
        first, last = coming[0], coming[-1]
        self.chunk: Chunk = store.begin(first.kind, first.start_s, last.end_s, places, last.extent, first.clock)
        self.chunk.gives_way = True
        self._parts = self.chunk.raw.split([block.num_tokens for block in self._blocks], dim=2)
        self._sealed = 0

    @property
    def is_open(self) -> bool:
        """Whether there is more to seal."""
        return self._store._open is self.chunk

    def seal(self) -> Span:
        """The next block is in the store. Raises `CapacityError` when there is no room for what is noted of it."""
        self.chunk._check_open()
        number, store = self._sealed, self._store
        block, held = self._blocks[number], self._coming[number]
        store._signals.reserve()
        span = store._seal(_Part(self._parts[number]), block, held.kind, held.start_s, held.end_s)
        self._sealed += 1
        store._open = self.chunk if self._sealed < len(self._blocks) else None
        return span

    def abort(self) -> None:
        """Give up what is not sealed. Aborting twice is fine."""
        self.chunk.abort()


class Foreseen:
    """The spans of a store as they will be once more blocks are in it."""

    def __init__(self, store: "KVStore") -> None:
        self._entries, self._next_id = store.spans.entries(), store._next_id

    def spans_with(self, coming: Sequence[Held]) -> Spans:
        """All blocks, and those that have been named so far, these included."""
        for held in coming:
            span = Span(self._next_id, held.kind, held.positions.shape[1], held.start_s, held.end_s)
            self._entries[self._next_id] = _Coming(span)
            self._next_id += 1
        return Spans(self._entries.copy())


class _Coming(NamedTuple):
    """An entry of which nothing but the span is known."""

    span: Span
