"""What a question sees of the past: chosen blocks, gathered from both tiers and rotated once."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.kvstore.arena import Arena, allocate
from onlooker.kvstore.blocks import Block, Entry, Offset
from onlooker.kvstore.catalog import Catalog
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
    owners: Tensor | None = None
    """Where single rows were picked: the place of each row's block among `blocks`, int64 `[layers, kv_heads, rows]`, or
    `[layers, 1, rows]` where all heads see the same. None: whole blocks, one after the other."""

    def layers(self) -> list["Context"]:
        """One context for each layer."""
        owned = self.owned_bytes // len(self.keys)
        return [
            Context(
                self.keys[n : n + 1],
                self.values[n : n + 1],
                self.blocks,
                self.held,
                self.reach,
                owned,
                None if self.counts is None else self.counts[n : n + 1],
                None if self.owners is None else self.owners[n : n + 1],
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
    host: Catalog[Tensor]
    """Slabs of the parked blocks, each `[2, layers, kv_heads, tokens, head_dim]`."""
    placing: Placing
    """What came behind all that was on the device."""
    turn: Rotary
    """Rotates what is rotated already (`rotation.by_steps`)."""
    held: tuple[Block, ...] = ()
    """Blocks that are in no store: the question reads them itself, before its own words."""

    def num_tokens(self, chosen: tuple[int, ...]) -> int:
        """Rows that these blocks have together."""
        return sum(self.entries[block].span.num_tokens for block in chosen)

    def resident(self, chosen: tuple[int, ...], rows: slice) -> Context:
        """A context without any copy: the blocks are what arena `rows` hold, which is all that was on the device."""
        placing = self.placing.copy()
        held = tuple(placing.place(block) for block in self.held)
        keys, values = self.arena.keys[:, :, rows], self.arena.values[:, :, rows]
        return Context(keys, values, chosen, held, placing.reach, 0)

    def gather(self, chosen: tuple[int, ...], layers: range, fetched: tuple[int, ...] | None = None) -> Context:
        """A context of some neighbouring layers: packed positions (a block starts where the one before it ends), to
        which keys are rotated from where they were written.

        Layers that see other blocks would end at other positions. Only distances matter, so their contexts are moved to
        end where the watching view does: a packed pass has one place for a question's tokens. Only the blocks that are
        `fetched` (by default all) are in it, at the places that they have among all that were chosen.
        """
        spec, picked = self.spec, slice(layers.start, layers.stop)
        places, chosen = chosen, chosen if fetched is None else fetched
        shape = (len(layers), spec.num_kv_heads, self.num_tokens(chosen), spec.head_dim)
        keys, values = (allocate(shape, spec.dtype, spec.device) for _ in range(2))
        at = 0
        for slab, start, count in self._runs(chosen):
            rows, to = slice(start, start + count), slice(at, at + count)
            from_keys, from_values = slab if slab is not None else (self.arena.keys, self.arena.values)
            keys[:, :, to].copy_(from_keys[picked, :, rows], non_blocking=True)
            values[:, :, to].copy_(from_values[picked, :, rows], non_blocking=True)
            at += count
        at = 0
        for block in chosen if self.written else ():
            count = self.entries[block].span.num_tokens
            if block in self.written and block not in self.host:
                keys[:, :, at : at + count].copy_(self.written[block][picked], non_blocking=True)
            at += count
        blocks = [*(self.entries[block].block for block in places), *self.held]
        offsets, reach = lay_out(blocks, spec.position_axes)
        if len(layers) < spec.num_layers or any(block.clock is not None for block in blocks):
            end = self.placing.reach
            steps = [place - own for place, own in zip(end, reach, strict=True)]
            offsets = [tuple(map(sum, zip(offset, steps, strict=True))) for offset in offsets]
            reach = end
        offsets, held = offsets[: len(places)], tuple(offsets[len(places) :])
        if fetched is not None:
            starts = dict(zip(places, offsets, strict=True))
            offsets = [starts[block] for block in chosen]
        if chosen:
            counts = [self.entries[block].span.num_tokens for block in chosen]
            written = [self.entries[block].block.written for block in chosen]
            steps = [tuple(b - a for a, b in zip(*two, strict=True)) for two in zip(written, offsets, strict=True)]
            cos, sin = self.turn(spread(steps, counts, spec.device))
            for layer in range(len(layers)):
                keys[layer] = rotate(keys[layer], cos, sin)
        return Context(keys, values, chosen, held, reach, keys.nbytes + values.nbytes)

    def _runs(self, chosen: tuple[int, ...]) -> list[tuple[Tensor | None, int, int]]:
        """(slab or None for the arena, first row, rows): neighbours in the arena are one run, one copy."""
        runs: list[tuple[Tensor | None, int, int]] = []
        for block in chosen:
            entry = self.entries[block]
            count = entry.span.num_tokens
            if (slab := self.host.get(block)) is not None:
                runs.append((slab, 0, count))
                continue
            row = self.rows[block] - self.moved
            if runs and runs[-1][0] is None and runs[-1][1] + runs[-1][2] == row:
                runs[-1] = (None, runs[-1][1], runs[-1][2] + count)
            else:
                runs.append((None, row, count))
        return runs
