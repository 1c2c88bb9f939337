"""A window whose blocks lie in codes: what the stream sees while it is being watched, in fewer bits."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from onlooker.core.contracts import Codec, ModelSpec
from onlooker.kernels.coded_rows import CodedRows, Form, coding_kernels, encode_block
from onlooker.kernels.packed_attention import HEAD_DIMS
from onlooker.kvstore.arena import Arena
from onlooker.kvstore.blocks import Block, Offset
from onlooker.kvstore.coded import Coded, read_layer, room
from onlooker.kvstore.melting import Melted
from onlooker.kvstore.placing import Placing
from onlooker.kvstore.rotation import Turning
from onlooker.kvstore.tile_table import TileTable
from onlooker.kvstore.window import SLACK, Window, step


class CodedWindow(Window):
    """As `Window`, but a block is encoded once, when it is sealed, and its codes are what is read from then on.

    In the arena lie the rows of the `lead` only (from row 0), and behind them those of the block being written. The
    lead are the oldest blocks: the prefix, and others that have to lie as they are computed, because they move (anchors
    in front of blocks that left) or because single rows of them are left (melted runs, and what is before them). A
    block that has joined the lead stays there as it is. Everything behind the lead lies in codes, a piece of memory a
    block, which is shared with forks and open questions.
    """

    def __init__(self, spec: ModelSpec, turn: Turning, codec: Codec) -> None:
        super().__init__(spec, turn)
        self.codec = codec
        form = Form.of(codec.form) if spec.head_dim in HEAD_DIMS else None
        self._kernels = None if form is None else coding_kernels(spec.device)
        self._table = None if form is None or self._kernels is None else TileTable(spec.device, form)
        self._coming: Coded | None = None
        """Room for the block that is being written."""

    # ------------------------------------------------------------------------------------------------------ reading

    def written_keys(self, block: Block) -> Tensor:
        coded = self.coded.get(block.id)
        return super().written_keys(block) if coded is None else self._decoded(coded)[0]

    def values(self, block: Block) -> Tensor:
        coded = self.coded.get(block.id)
        return super().values(block) if coded is None else self._decoded(coded)[1]

    def are_neighbours(self, run: list[Block]) -> bool:
        names, resident = [block.id for block in run], list(self.blocks)
        first = resident.index(names[0])
        return resident[first : first + len(names)] == names

    def coded_rows(self) -> CodedRows | None:
        if not self.coded_tokens:
            return None
        blocks, codec, spec = self.coded.copy(), self.codec, self.spec
        tiles, before = (None, 0) if self._table is None else self._table.tiles(self._listed())

        def read(layer: int) -> tuple[Tensor, Tensor]:
            return read_layer(blocks.values(), codec, layer, spec)

        return CodedRows(read, self.coded_tokens, tiles, before)

    def beside_bytes(self) -> int:
        return super().beside_bytes() + (0 if self._table is None else self._table.num_bytes())

    # ------------------------------------------------------------------------------------------------------ writing

    def reserve(self, num_tokens: int, most_rows: int) -> None:
        super().reserve(num_tokens, most_rows)
        self._coming = room(self.spec, self.codec, num_tokens, self.spec.device)
        if self._table is not None:
            self._table.reserve(num_tokens, self._listed())

    def append(self, block: Block, offset: Offset | None = None, *, is_prefix: bool = False) -> None:
        coded, self._coming = self._coming, None
        if is_prefix:
            self.take_rows(block, offset, is_prefix=True)
            return
        assert coded is not None and coded.num_tokens == block.num_tokens, "room comes first"
        rows = slice(self.tail, self.tail + block.num_tokens)
        keys, values = (tensor[:, :, rows] for tensor in self.arena.tensors)
        if self._table is None:
            coded.fill(self.codec.encode(keys, values))
        else:
            place = self._table.add(block.id, block.num_tokens)
            encode_block(keys, values, coded.slab, self._table.form, *place, self._kernels)
        self._join(block, coded, offset)

    def put(self, block: Block, parts: Mapping[str, Tensor], offset: Offset) -> None:
        coded = room(self.spec, self.codec, block.num_tokens, self.spec.device)
        coded.fill(parts)
        if self._table is not None:
            self._table.forget_all()
        self._join(block, coded, offset)

    def unshare(self) -> None:
        for name, coded in list(self._listed()):
            own = room(self.spec, self.codec, coded.num_tokens, self.spec.device)
            own.slab.copy_(coded.slab)
            self.coded[name] = own
        if self._table is not None:
            self._table.forget_all()

    def _join(self, block: Block, coded: Coded, offset: Offset | None) -> None:
        self.blocks[block.id], self.coded[block.id] = block, coded
        place = self.placing.place(block)
        self.offsets[block.id] = place if offset is None else offset
        self.coded_tokens += block.num_tokens
        self.coded_bytes += coded.nbytes

    # ------------------------------------------------------------------------------------------------------ leaving

    def lay_open(self, run: list[Block]) -> tuple[Tensor, Tensor]:
        self._open_up_to(run[-1])
        return super().lay_open(run)

    def twin(self) -> Window:
        twin = super().twin()
        twin.coded, twin.coded_tokens, twin.coded_bytes = self.coded.copy(), self.coded_tokens, self.coded_bytes
        return twin

    def _blank(self) -> Window:
        blank = CodedWindow(self.spec, self.turn, self.codec)
        if blank._table is not None:
            blank._table.forget_all()
        return blank

    def _may_retract(self, leaving: set[int]) -> bool:
        return all(block in self.coded for block in leaving)

    def _retract(self, leaving: set[int]) -> None:
        self._drop(leaving)
        self.placing = Placing.behind(reversed(self.blocks.values()), self.offsets, self.spec.position_axes)

    def _drop(self, leaving: set[int]) -> None:
        super()._drop(leaving)
        self._uncode(leaving)

    def _uncode(self, leaving: Iterable[int]) -> None:
        """These blocks lie in codes no longer."""
        leaving = [block for block in leaving if block in self.coded]
        for block in leaving:
            coded = self.coded.remove(block)
            self.coded_tokens -= coded.num_tokens
            self.coded_bytes -= coded.nbytes
        if self._table is not None:
            self._table.drop(leaving)

    def _slide(self, gone: list[Block], anchors: list[Block], after: Block | None) -> None:
        num_left = len(self.blocks) - len(gone)
        offsets = self._anchor_offsets(anchors, after)
        there, leaving = self._lead(), {block.id for block in gone}
        lead = anchors + [block for block in there if block.id not in leaving and block not in anchors]
        written = {
            block.id: self.written[block.id] if block.id in self.written else self.written_keys(block).clone()
            for block in anchors
        }
        size, arena, rows = sum(block.num_tokens for block in anchors), self.arena, ()
        if anchors:
            steps = [step(block.written, offset) for block, offset in zip(anchors, offsets, strict=True)]
            rows = (self.turn.turned(list(written.values()), steps),)
        stays = lead == there
        if not stays:  # other blocks: all rows are written anew
            keys = [*rows, *(super(CodedWindow, self).lay_open([block])[0] for block in lead[len(anchors) :])]
            values = [self.values(block) for block in lead]
            rows = (torch.cat(keys, dim=2), torch.cat(values, dim=2)) if lead else ()
        total = sum(block.num_tokens for block in lead)
        if total > arena.capacity or (rows and arena.is_read(0, self.tail)):
            arena = Arena(self.spec, max(arena.capacity, total * (SLACK + 1) // SLACK))
            if stays:
                arena.copy_rows(self.arena, 0, self.tail, 0)
        self._drop(leaving)
        self._uncode(block.id for block in anchors)
        self.written, self.arena = self.written | written, arena
        for tensor, new in zip(arena.tensors, rows, strict=False):
            tensor[:, :, : new.shape[2]] = new
        if not stays:
            self._settle_lead(lead)
        for block, offset in zip(anchors, offsets, strict=True):
            self.offsets[block.id] = offset
        assert self.tail >= size
        self._replace_placing(gone, anchors, num_left, after)

    def _lead(self) -> list[Block]:
        """The blocks in the arena, in stream order."""
        lead = []
        for block in self.blocks.values():
            if block.id in self.coded:
                break
            lead.append(block)
        return lead

    def _settle_lead(self, lead: list[Block]) -> None:
        """The lead are these blocks, whose rows lie one behind the other."""
        row = 0
        for block in lead:
            self.rows[block.id] = row + self.moved
            row += block.num_tokens
        self.tail = row

    def _open_up_to(self, last: Block) -> None:
        """All blocks up to this one join the lead. Raises `CapacityError` when the device has no memory left."""
        if last.id not in self.coded:
            return
        lead = self._lead()
        more = []
        for block in self.blocks.values():
            if block.id in self.coded:
                more.append(block)
            if block is last:
                break
        decoded = [self._decoded(self.coded[block.id]) for block in more]
        total = self.tail + sum(block.num_tokens for block in more)
        arena = self.arena
        if total > arena.capacity:
            arena = Arena(self.spec, total * (SLACK + 1) // SLACK)
            arena.copy_rows(self.arena, 0, self.tail, 0)
        for number, tensor in enumerate(arena.tensors):
            tensor[:, :, self.tail : total] = torch.cat([pair[number] for pair in decoded], dim=2)
        self.arena = arena
        self._uncode(block.id for block in more)
        self._settle_lead([*lead, *more])

    def melt(self, run: list[Block], index: Tensor, melted: Melted, packs: bool = False) -> Block:
        self._open_up_to(run[-1])
        return super().melt(run, index, melted, packs)

    def _listed(self) -> Iterable[tuple[int, Coded]]:
        """The blocks in codes, in stream order."""
        return ((block, self.coded[block]) for block in self.blocks if block in self.coded)

    def _decoded(self, coded: Coded) -> tuple[Tensor, Tensor]:
        return self.codec.decode(coded.parts, self.spec.dtype)


def new_window(spec: ModelSpec, turn: Turning, codec: Codec) -> Window:
    """The window of a stream whose blocks lie on the device as a codec says."""
    return Window(spec, turn) if codec.plain else CodedWindow(spec, turn, codec)
