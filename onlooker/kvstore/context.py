"""What a question sees of the past: chosen blocks, gathered from both tiers and rotated once."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.kernels.coded_rows import CodedRows
from onlooker.kernels.ranges import range_kernels
from onlooker.kvstore.arena import Arena, allocate
from onlooker.kvstore.blocks import Block, Entry, Offset
from onlooker.kvstore.catalog import Catalog
from onlooker.kvstore.coded import Coded
from onlooker.kvstore.fetching import Fetch, Lent
from onlooker.kvstore.melting import Melted
from onlooker.kvstore.placing import Placing, lay_out
from onlooker.kvstore.rotation import Rotary, rotate, spread


@dataclass(frozen=True, eq=False)
class Context:
    """The frozen past of one layer, or of several that see the same."""

    keys: Tensor
    """Rotated, `[layers, kv_heads, rows, head_dim]`."""
    values: Tensor
    """`[layers, kv_heads, rows, head_dim]`."""
    blocks: tuple[int, ...]
    """Whose rows these are, in order."""
    held: tuple[Offset, ...]
    """Where the blocks start that the question reads itself, behind all others."""
    reach: Offset
    """The position after the last block: the question starts here."""
    owned_bytes: int
    """Bytes held beyond what the store holds anyway."""
    counts: Tensor | None = None
    """How many rows each layer and head sees, the first ones, int32 `[layers, kv_heads]`; None: all."""
    coded: CodedRows | None = None
    """Rows behind these that lie in codes, of all layers of the model."""
    layer: int = 0
    """Number of the first layer."""
    owners: Tensor | None = None
    """Where single rows were picked, or are left of what melted: the place of each row's block among `blocks`, int64
    `[layers, kv_heads, rows]`, or `[layers, 1, rows]` where all heads see the same. None: whole blocks, one after the
    other."""

    @property
    def num_rows(self) -> int:
        """Rows of a layer, those in codes included."""
        return self.keys.shape[2] + (0 if self.coded is None else self.coded.num_rows)

    def past(self, number: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values of one of its layers, `[kv_heads, rows, head_dim]`."""
        own = self.keys[number], self.values[number]
        if self.coded is None:
            return own
        pairs = zip(own, self.coded.read(self.layer + number), strict=True)
        keys, values = (torch.cat(pair, dim=1) for pair in pairs)
        return keys, values

    def decoded(self) -> "Context":
        """The same with all rows as the model computes them."""
        if self.coded is None:
            return self
        both = [self.past(number) for number in range(len(self.keys))]
        keys, values = (torch.stack([one[n] for one in both]) for n in range(2))
        owned = keys.nbytes + values.nbytes
        return dataclasses.replace(self, keys=keys, values=values, coded=None, owned_bytes=owned)

    def layers(self) -> list["Context"]:
        """One context for each layer."""
        owned = self.owned_bytes // len(self.keys)
        return [
            dataclasses.replace(
                self,
                keys=self.keys[n : n + 1],
                values=self.values[n : n + 1],
                owned_bytes=owned,
                counts=None if self.counts is None else self.counts[n : n + 1],
                owners=None if self.owners is None else self.owners[n : n + 1],
                layer=self.layer + n,
            )
            for n in range(len(self.keys))
        ]


@dataclass(frozen=True, eq=False)
class Sources:
    """Where every block lay when a question was opened. The stream moves on; these stay valid."""

    spec: ModelSpec
    rotary: Rotary
    entries: Catalog[Entry]
    arena: Arena
    rows: Catalog[int]
    """First row of the blocks on the device; `moved` rows further up in the arena."""
    moved: int
    written: Mapping[int, Tensor]
    """Keys of the anchors as they were written (see `Window`): their rows in the arena are rotated elsewhere."""
    melted: Mapping[int, Melted]
    """Runs of blocks of which only some rows are left (see `Window`)."""
    host: Catalog[Coded]
    """The parked blocks."""
    coded: Catalog[Coded]
    """Blocks on the device that lie in codes."""
    coded_rows: CodedRows | None
    """All of those."""
    placing: Placing
    """What came behind all that was on the device."""
    turn: Rotary
    """Rotates what is rotated already (`rotation.Turning`)."""
    held: tuple[Block, ...] = ()
    """Blocks that are in no store: the question reads them itself, before its own words."""
    lent: Lent = field(default_factory=Lent)
    """Blocks that are being read: `end` it before the last reference to them may go."""

    def coded_blocks(self) -> Iterable[tuple[int, Coded]]:
        """Blocks on the device that lie in codes, by number."""
        return ((unit.block.id, one) for unit in self.entries.values() if (one := self.coded.get(unit.block.id)))

    def num_tokens(self, chosen: tuple[int, ...]) -> int:
        """Rows that these blocks have together."""
        return sum(block.num_tokens for block in self._units(chosen))

    def _units(self, chosen: Iterable[int]) -> list[Block]:
        """What lies in the store for these blocks: themselves, or once the run that they were melted into."""
        return list({unit.id: unit for unit in (self.entries[block].block for block in chosen)}.values())

    def owners(self, chosen: tuple[int, ...], num_layers: int) -> Tensor | None:
        """The place of each row's block among those chosen, -1 for those of others, int64 `[layers, kv_heads, rows]`;
        None where nothing is melted."""
        units = self._units(chosen)
        if not any(unit.id in self.melted for unit in units):
            return None
        places, parts = {block: n for n, block in enumerate(chosen)}, []
        for unit in units:
            if (known := self.melted.get(unit.id)) is None:
                shape = num_layers, self.spec.num_kv_heads, unit.num_tokens
                parts.append(torch.full(shape, places[unit.id], dtype=torch.int64, device=self.spec.device))
            else:
                names = torch.tensor([places.get(block, -1) for block in known.blocks], dtype=torch.int64)
                parts.append(names.to(self.spec.device)[known.owners])
        return torch.cat(parts, dim=2)

    def resident(self, chosen: tuple[int, ...], rows: slice) -> Context:
        """A context without any copy: the blocks are what arena `rows` and codes hold, all that was on the device."""
        placing = self.placing.copy()
        held = tuple(placing.place(block) for block in self.held)
        keys, values = self.arena.keys[:, :, rows], self.arena.values[:, :, rows]
        owners = self.owners(chosen, self.spec.num_layers) if self.melted else None
        return Context(keys, values, chosen, held, placing.reach, 0, owners=owners, coded=self.coded_rows)

    def gather(self, chosen: tuple[int, ...], layers: range, fetched: tuple[int, ...] | None = None) -> Context:
        """A context of some neighbouring layers: packed positions (a block starts where the one before it ends), to
        which keys are rotated from where they were written.

        Layers that see other blocks would end at other positions. Only distances matter, so their contexts are moved to
        end where the watching view does: a packed pass has one place for a question's tokens. Only the blocks that are
        `fetched` (by default all) are in it, at the places that they have among all that were chosen. Of what was
        melted together all rows are in it: see `rows.gathered`.
        """
        spec, picked = self.spec, slice(layers.start, layers.stop)
        units = self._units(chosen)
        fetched_units = units if fetched is None else self._units(fetched)
        chosen = chosen if fetched is None else fetched
        shape = (len(layers), spec.num_kv_heads, sum(unit.num_tokens for unit in fetched_units), spec.head_dim)
        keys, values = (allocate(shape, spec.dtype, spec.device) for _ in range(2))
        self._fetch(fetched_units, picked, keys, values)
        blocks = [*units, *self.held]
        offsets, reach = lay_out(blocks, spec.position_axes)
        if len(layers) < spec.num_layers or any(block.clock is not None for block in blocks):
            end = self.placing.reach
            steps = [place - own for place, own in zip(end, reach, strict=True)]
            offsets = [tuple(map(sum, zip(offset, steps, strict=True))) for offset in offsets]
            reach = end
        held = tuple(offsets[len(units) :])
        if chosen:
            starts = dict(zip((unit.id for unit in units), offsets, strict=False))
            counts = [unit.num_tokens for unit in fetched_units]
            steps = [
                tuple(there - here for here, there in zip(unit.written, starts[unit.id], strict=True))
                for unit in fetched_units
            ]
            cos, sin = self.turn(spread(steps, counts, spec.device))
            for layer in range(len(layers)):
                rotate(keys[layer], cos, sin, into=keys[layer])
        owners = self.owners(chosen, spec.num_layers) if self.melted else None
        owners = None if owners is None else owners[picked]
        return Context(keys, values, chosen, held, reach, keys.nbytes + values.nbytes, owners=owners)

    def _fetch(self, units: Sequence[Block], picked: slice, keys: Tensor, values: Tensor) -> None:
        """Copy some layers of these one behind the other into keys and values `[layers, kv_heads, rows, head_dim]`,
        keys as they were written."""
        fetch = Fetch(picked, self.spec.num_layers, (keys, values), range_kernels(self.spec.device), self.lent)
        runs: list[tuple[int, int, int]] = []
        anchors, at = [], 0
        for unit in units:
            block, count = unit.id, unit.num_tokens
            slab = self.host.get(block) or self.coded.get(block)
            if slab is not None:
                fetch.block(slab, slice(at, at + count))
            else:
                row = self.rows[block] - self.moved
                if runs and runs[-1][0] + runs[-1][2] == row and runs[-1][1] + runs[-1][2] == at:
                    runs[-1] = (*runs[-1][:2], runs[-1][2] + count)  # neighbours are one run, one copy
                else:
                    runs.append((row, at, count))
                anchors += [(self.written[block], slice(at, at + count))] if block in self.written else []
            at += count
        for row, start, count in runs:
            rows = slice(row, row + count)
            fetch.rows(self.arena.keys[:, :, rows], self.arena.values[:, :, rows], slice(start, start + count))
        fetch.run()
        for written, to in anchors:
            keys[:, :, to].copy_(written[picked])
