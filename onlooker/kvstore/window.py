"""What the stream sees while it is being watched: the prefix and the resident blocks as one slice of an arena."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.errors import InputError
from onlooker.kernels.coded_rows import CodedRows
from onlooker.kvstore.arena import Arena, allocate
from onlooker.kvstore.blocks import Block, Offset
from onlooker.kvstore.catalog import Catalog
from onlooker.kvstore.coded import Coded
from onlooker.kvstore.melting import Melted, Packed, joined, joined_rows, last_place, shortened
from onlooker.kvstore.placing import Placing
from onlooker.kvstore.rotation import Turning, rotate

LEAST_ROWS = 64
SLACK = 8
"""An arena has room for one row more than needed for so many."""


class Window:
    """The resident blocks of one stream: rows `[head, tail)` of an arena, prefix first, then stream order.

    The position rule while watching is `pack`: a block starts where the one before it ends (or, inside a long video, as
    its clock says: see `Placing`), and the prefix ends where the first block begins, on each axis. Only distances
    matter to rotary attention, so keys lie once, rotated to the place where they were written. When blocks leave, those
    behind them stay as they are, and only what stays in front of them (the prefix, perhaps sinks and old text: the
    anchors) moves up to the first block behind; its keys as they were written are kept aside, and rotated by the whole
    way each time. Positions go on growing (a rotary is exact at any position, see `VideoModel.rotary`), so nothing is
    ever rotated twice. Behind a long video that has lost its beginning, text and further videos stay where they were,
    so that their distance is that of the whole video.

    Whatever needs memory comes first in every act, and what changes the window needs none: an act that fails for want
    of memory has done nothing.
    """

    def __init__(self, spec: ModelSpec, turn: Turning) -> None:
        """`turn` rotates keys that are rotated already by so many positions more."""
        self.spec, self.turn = spec, turn
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
        self.written: dict[int, Tensor] = {}
        """Keys of the anchors that have moved, as they were written, `[layers, kv_heads, tokens, head_dim]`. The
        dictionary is replaced and never changed, so that open questions may keep it."""
        self.melted: dict[int, Melted] = {}
        """Runs of which only some rows are left, by the block that stands for each. Replaced, never changed."""
        self.placing = Placing(spec.position_axes)
        """Where the next block starts."""
        self.coded: Catalog[Coded] = Catalog()
        """Resident blocks that lie in codes instead of rows: none here (see `CodedWindow`)."""
        self.coded_tokens = self.coded_bytes = 0

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return self.tail - self.head

    def row_of(self, block: int) -> int:
        """First arena row of a resident block."""
        return self.rows[block] - self.moved

    def written_keys(self, block: Block) -> Tensor:
        """Keys of a resident block as they were written, `[layers, kv_heads, tokens, head_dim]`."""
        start = self.row_of(block.id)
        rows = self.arena.keys[:, :, start : start + block.num_tokens]
        return self.written.get(block.id, rows)

    def values(self, block: Block) -> Tensor:
        """Values of a resident block, `[layers, kv_heads, tokens, head_dim]`."""
        start = self.row_of(block.id)
        return self.arena.values[:, :, start : start + block.num_tokens]

    def lay_open(self, run: list[Block]) -> tuple[Tensor, Tensor]:
        """Keys and values of neighbouring blocks as they lie, `[layers, kv_heads, rows, head_dim]`. Raises
        `CapacityError` when the device has no memory for them."""
        start = self.row_of(run[0].id)
        rows = slice(start, start + sum(block.num_tokens for block in run))
        return self.arena.keys[:, :, rows], self.arena.values[:, :, rows]

    def put(self, block: Block, parts: Mapping[str, Tensor], offset: Offset) -> None:
        """A block whose codes are there already, behind all others: they are copied."""
        raise NotImplementedError("this window has no codes")

    def unshare(self) -> None:
        """Hold alone what is shared with forks: nothing here."""

    def coded_rows(self) -> CodedRows | None:
        """What a segment sees of blocks in codes, behind the rows `[head, tail)`; None where there are none."""
        return None

    def beside_bytes(self) -> int:
        """Bytes beside the arena: blocks in codes, and keys that are kept aside."""
        return self.coded_bytes + self.anchor_bytes()

    def anchor_bytes(self) -> int:
        """Bytes of keys that are kept aside."""
        packed = sum(one.packed.nbytes for one in self.melted.values() if one.packed is not None)
        return packed + sum(keys.nbytes for keys in self.written.values())

    def reserve(self, num_tokens: int, most_rows: int) -> None:
        """Make room for a block behind the tail. The caller has checked that it fits into `most_rows`.

        Raises `CapacityError` when the device has no memory left.
        """
        needed = self.num_rows + num_tokens
        if self.tail + num_tokens > self.arena.capacity or self.arena.capacity > most_rows:
            wanted = self.arena.capacity
            # Grow only when little would be won by moving the live rows to the front: a window that slides settles at
            # an eighth more rows than it holds, and moves them once for every eighth that comes.
            if needed > self.arena.capacity or self.head * SLACK < needed:
                wanted = max(needed * (SLACK + 1) // SLACK, LEAST_ROWS)
            # Below the budget, leave a little for the signals, which grow with every block.
            wanted = wanted if wanted <= most_rows else max(needed, most_rows * 7 // 8)
            self._move(wanted)

    def append(self, block: Block, offset: Offset | None = None, *, is_prefix: bool = False) -> None:
        """The rows behind the tail have become a block, which lies where it was written, or at an offset."""
        self.take_rows(block, offset, is_prefix=is_prefix)

    def take_rows(self, block: Block, offset: Offset | None = None, *, is_prefix: bool = False) -> None:
        """As `append`, of rows that stay as they are."""
        if is_prefix:
            self.prefix = block
        self.blocks[block.id] = block
        self.rows[block.id] = self.tail + self.moved
        place = self.placing.place(block)
        self.offsets[block.id] = place if offset is None else offset
        self.tail += block.num_tokens

    def remove(self, leaving: set[int]) -> None:
        """Blocks leave the window (they were parked or forgotten). Never the prefix.

        The newest of all leave without any need of memory, unless an open question reads them. Raises `CapacityError`
        when the device has no memory left for what others need.
        """
        if not leaving:
            return
        if leaving == set(itertools.islice(reversed(self.blocks), len(leaving))) and self._may_retract(leaving):
            self._retract(leaving)
            return
        gone, anchors, blocks = [], [], iter(self.blocks.values())
        while len(gone) < len(leaving):
            block = next(blocks)
            (gone if block.id in leaving else anchors).append(block)
        self._slide(gone, anchors, next(blocks, None))

    def read(self, blocks: list[int]) -> slice | None:
        """The arena rows of these blocks if they are exactly what is resident, else None."""
        return slice(self.head, self.tail) if blocks == self.members(self.blocks) else None

    def members(self, blocks: Iterable[int]) -> list[int]:
        """The blocks whose rows resident blocks hold: themselves, or those of a melted run."""
        if not self.melted:
            return list(blocks)
        return [name for block in blocks for name in (self.melted[block].blocks if block in self.melted else (block,))]

    def are_neighbours(self, run: list[Block]) -> bool:
        """Whether the rows of these blocks lie side by side, in this order."""
        rows = [self.row_of(block.id) for block in run]
        return all(row + block.num_tokens == after for row, block, after in zip(rows, run, rows[1:], strict=False))

    def melt(self, run: list[Block], index: Tensor, melted: Melted, packs: bool = False) -> Block:
        """Of neighbouring blocks only the rows `index`, int64 `[layers, kv_heads, kept]`, stay, and are moved together
        if it `packs`. The block that stands for them. Raises `CapacityError` when the device has no memory left for one
        layer of them (or for all rows, while an open question reads them), or for their keys once more."""
        kept, start = index.shape[2], self.row_of(run[0].id)
        end = start + sum(block.num_tokens for block in run)
        gap = end - start - kept
        packed = self.rows_as_written(run).picked(index) if packs else None
        room = allocate((2, *index.shape[1:], self.spec.head_dim), self.spec.dtype, self.spec.device)
        arena, shift = self.arena, 0
        if arena.is_read(self.head, self.tail):
            # Copy on write: an open question reads these rows.
            arena, shift = Arena(self.spec, arena.capacity), self.head
            arena.copy_rows(self.arena, self.head, self.tail, 0)
        start, end, tail = start - shift, end - shift, self.tail - shift
        for layer in range(self.spec.num_layers):
            picked = index[layer][..., None].expand(-1, -1, self.spec.head_dim)
            for part, tensor in zip(room, arena.tensors, strict=True):
                torch.gather(tensor[layer, :, start:end], 1, picked, out=part)
                tensor[layer, :, start : start + kept] = part
        if gap:  # what lies behind the run moves up to it
            arena.move_rows(end, tail, end - gap)
        if arena is not self.arena:
            self._settle(arena, shift)
        self.tail -= gap
        block, offset = joined(run, [self.offsets[one.id] for one in run], kept), self.offsets[run[0].id]
        if packed is not None:
            block, melted = self._pack(run, block, packed), replace(melted, packed=packed)
            offset = block.written
        self._replace(run, block, melted, gap, offset)
        if packed is not None:
            self._follow(block)
        return block

    def rows_as_written(self, run: list[Block]) -> Packed:
        """Keys of neighbouring blocks as they were written, and where that was. Raises `InputError` when some of their
        places are not known any more."""
        parts = []
        for block in run:
            known = self.melted.get(block.id)
            if known is not None and known.packed is None:
                given = f"blocks up to {known.blocks[-1]} melted where they were"
                raise InputError("rows are packed from the first time on", given=given, do="open a new session")
            if known is not None and known.packed is not None:
                parts.append(known.packed)
                continue
            places = (block.positions[0] + block.written[0]).expand(self.spec.num_layers, self.spec.num_kv_heads, -1)
            parts.append(Packed(self.written_keys(block), places))
        return joined_rows(parts)

    def _pack(self, run: list[Block], block: Block, packed: Packed) -> Block:
        """Rotate the rows of a run to where they lie once they are moved together, so that the last of each head stays
        where the run's end is. The block that stands for them then."""
        newest, ends, row = run[-1], packed.ends(), self.row_of(run[0].id)
        place = last_place(newest, self.melted.get(newest.id))
        last, beyond = self.offsets[newest.id][0] + place, newest.extent - 1 - place
        for layer in range(self.spec.num_layers):
            steps = (last - ends[layer] - packed.places[layer]).flatten()
            others = steps if block.clock is None else torch.zeros_like(steps)
            turn = self.turn(torch.stack([steps, *[others] * (self.spec.position_axes - 1)]))
            cos, sin = (part.view(*ends.shape[1:], -1) for part in turn)
            rotate(packed.written[layer], cos, sin, into=self.arena.keys[layer, :, row : row + block.num_tokens])
        return shortened(block, self.offsets[run[0].id], newest, last, beyond, int(ends.max()) + 1)

    def _follow(self, block: Block) -> None:
        """What lies before a run moves up to where it begins now."""
        anchors = list(itertools.takewhile(lambda one: one.id != block.id, self.blocks.values()))
        if not anchors:
            return
        offsets, size = self._anchor_offsets(anchors, block), sum(one.num_tokens for one in anchors)
        rows, written = self._moved_rows(anchors, offsets, self.head)
        self.written = self.written | written
        for tensor, moved_rows in zip(self.arena.tensors, rows, strict=True):
            tensor[:, :, self.head : self.head + size] = moved_rows
        self.offsets |= {one.id: offset for one, offset in zip(anchors, offsets, strict=True)}
        self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)

    def _replace(self, run: list[Block], block: Block, melted: Melted, gap: int, offset: Offset) -> None:
        """One block stands for a run, at an offset; the rows of all behind it have moved to the front by `gap`."""
        names, behind = {one.id for one in run}, False
        for name in list(self.blocks):
            if behind and name not in names and name in self.rows:
                self.rows[name] = self.rows[name] - gap
            behind = behind or name in names
        gone = names - {block.id}
        self._drop(gone)
        self.blocks[block.id], self.offsets[block.id] = block, offset
        self.written = {name: keys for name, keys in self.written.items() if name != block.id}
        self.melted = {name: one for name, one in self.melted.items() if name not in names} | {block.id: melted}
        self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)

    def twin(self) -> "Window":
        """An independent copy."""
        twin = self._blank()
        twin.arena = Arena(self.spec, self.num_rows)
        twin.arena.copy_rows(self.arena, self.head, self.tail, 0)
        twin.tail, twin.placing, twin.prefix = self.num_rows, self.placing.copy(), self.prefix
        twin.blocks, twin.offsets, twin.written = dict(self.blocks), dict(self.offsets), self.written
        twin.melted = self.melted
        twin.rows, twin.moved = self.rows.copy(), self.moved + self.head
        return twin

    def _blank(self) -> "Window":
        return Window(self.spec, self.turn)

    def _may_retract(self, leaving: set[int]) -> bool:
        """Whether the newest blocks can leave as if they had never come."""
        return not self.arena.is_read(min(self.row_of(block) for block in leaving), self.tail)

    def _drop(self, leaving: set[int]) -> None:
        for block in leaving:
            del self.blocks[block], self.offsets[block]
            if block in self.rows:
                self.rows.remove(block)
        if not leaving.isdisjoint(self.melted):
            self.melted = {block: melted for block, melted in self.melted.items() if block not in leaving}
        if not leaving.isdisjoint(self.written):
            self.written = {block: keys for block, keys in self.written.items() if block not in leaving}

    def _retract(self, leaving: set[int]) -> None:
        """The newest blocks are gone: the next one takes their place."""
        self.tail = min(self.row_of(block) for block in leaving)
        self._drop(leaving)
        self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)

    def _slide(self, gone: list[Block], anchors: list[Block], after: Block | None) -> None:
        """Some blocks are gone: what was before the last of them, the anchors, moves up to what comes after."""
        num_left, size = len(self.blocks) - len(gone), sum(block.num_tokens for block in anchors)
        end = self.tail if after is None else self.row_of(after.id)
        head, offsets = end - size, self._anchor_offsets(anchors, after)
        rows, written = self._moved_rows(anchors, offsets, head) if anchors else ((), {})
        arena = self.arena
        if anchors and arena.is_read(head, end):
            # Copy on write: an open question reads the rows that the anchors are about to take.
            arena = Arena(self.spec, arena.capacity)
            arena.copy_rows(self.arena, end, self.tail, size)
        self._drop({block.id for block in gone})
        # Those that moved once and lie behind stay where they are, and known as they were written.
        self.written, self.head = self.written | written, head
        if arena is not self.arena:
            self._settle(arena, head)
        if anchors:
            for tensor, moved_rows in zip(arena.tensors, rows, strict=True):
                tensor[:, :, self.head : self.head + size] = moved_rows
        row = self.head
        for block, offset in zip(anchors, offsets, strict=True):
            self.rows[block.id], self.offsets[block.id] = row + self.moved, offset
            row += block.num_tokens
        self._replace_placing(gone, anchors, num_left, after)

    def _anchor_offsets(self, anchors: list[Block], after: Block | None) -> list[Offset]:
        """Where the anchors lie, so that the last of them ends where what comes after begins."""
        placing = Placing(self.spec.position_axes)
        offsets = [placing.place(block) for block in anchors]
        come, goal = (
            (self.placing.reach, placing.reach)
            if after is None
            else (self.offsets[after.id], placing.peek(after.clock))
        )
        ahead = step(goal, come)
        return [tuple(map(sum, zip(offset, ahead, strict=True))) for offset in offsets]

    def _replace_placing(self, gone: list[Block], anchors: list[Block], num_left: int, after: Block | None) -> None:
        """What comes next lies behind those that are left."""
        if len(anchors) > int(self.prefix is not None):
            self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)
        else:
            self.placing.drop_oldest(gone, num_left - len(anchors), after)

    def _moved_rows(
        self, anchors: list[Block], offsets: list[Offset], head: int
    ) -> tuple[tuple[Tensor, Tensor], dict[int, Tensor]]:
        """Keys of the anchors rotated to these places, and their values, to be written from row `head` on; and their
        keys as they were written, by block."""
        places = [self.row_of(block.id) for block in anchors]
        values = [
            self.arena.values[:, :, at : at + block.num_tokens] for at, block in zip(places, anchors, strict=True)
        ]
        written = {
            block.id: self.written_keys(block) if block.id in self.written else self.written_keys(block).clone()
            for block in anchors
        }
        if len(anchors) > 1:
            moved_values = torch.cat(values, dim=2)
        else:  # the new rows may lie on the old ones
            moved_values = values[0].clone() if head < places[0] + anchors[0].num_tokens else values[0]
        steps = [step(block.written, offset) for block, offset in zip(anchors, offsets, strict=True)]
        return (self.turn.turned(list(written.values()), steps), moved_values), written

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

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Live rows of keys and values, each `[layers, kv_heads, rows, head_dim]`."""
        keys, values = (tensor[:, :, self.head : self.tail] for tensor in self.arena.tensors)
        return keys, values


def step(written: Offset, place: Offset) -> Offset:
    """The way from one place to another."""
    return tuple(there - here for here, there in zip(written, place, strict=True))
