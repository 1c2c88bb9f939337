"""The blocks of one stream: written once, seen while watching, parked, recalled, forgotten, within budgets."""

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onlooker.codecs.bf16 import BF16
from onlooker.core import registry
from onlooker.core.contracts import Codec, ModelSpec
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Plan, Scoring, Span, SpanKind, Tier
from onlooker.kvstore import snapshot
from onlooker.kvstore.arena import Arena, allocate
from onlooker.kvstore.blocks import Block, Entry
from onlooker.kvstore.catalog import Catalog, Spans
from onlooker.kvstore.chunk import Chunk, Written, end_open
from onlooker.kvstore.coded import Coded, encoded_bytes, hold, park
from onlooker.kvstore.coded_window import new_window
from onlooker.kvstore.disk import DiskTier
from onlooker.kvstore.melting import Melted, Pick, check_pick, whole_counts
from onlooker.kvstore.parked import Parked
from onlooker.kvstore.question import Choose, Held, QuestionView
from onlooker.kvstore.rotation import Rotary, Turning, moved, rotate
from onlooker.kvstore.signals import Signals

PLAIN = BF16()
TEXT_TOKENS = 64
"""More tokens of text than any model writes around a frame."""


class KVStore:
    """Keys and values of one stream: immutable blocks, with positions local to each block.

    Keys lie once, rotated to the place where their block was written. Read at another place, they are rotated by the
    difference, into a copy; what is stored never changes.

    Device tier: what the stream sees while watching (see `Window` for its position rule). Host tier: parked blocks,
    pinned where CUDA is there, one slab per block; beyond the host budget, on the disk (see `Parked`). Policies decide
    what goes where (`apply`); questions read the store through a `QuestionView` and leave no trace. Not thread-safe.
    """

    def __init__(
        self,
        spec: ModelSpec,
        rotary: Rotary,
        *,
        device_budget_bytes: int | None = None,
        host_budget_bytes: int | None = None,
        device_codec: Codec = PLAIN,
        host_codec: Codec = PLAIN,
        disk: DiskTier | None = None,
        disk_codec: Codec | None = None,
        num_queries: int = 0,
        turn: Turning | None = None,
    ) -> None:
        """`rotary` takes positions int64 `[axes, tokens]` to (cos, sin) float32 `[tokens, head_dim]`; `device_codec`
        says how blocks lie on the device (see `CodedWindow`), and `host_codec` how parked ones do; on `disk` lie those
        that the host budget does not hold, the oldest first, as `disk_codec` says (default: as they lay);
        `num_queries` of how many of a new block's last tokens the queries are wanted; `turn` is that of a store with
        the same rotary.

        The device budget covers the stream's rows (room to grow included), positions and signals. A question's context
        must fit beside them when it is gathered, but never stops the stream. While rows move to a larger arena, both
        exist for a moment.
        """
        self.spec, self.rotary = spec, rotary
        self.turn = turn or Turning(rotary, spec.position_axes, spec.device)
        self.device_budget_bytes, self.num_queries = device_budget_bytes, num_queries
        self.device_codec, self.host_codec = device_codec, host_codec
        self._parked = Parked(spec, host_codec, host_budget_bytes, disk, disk_codec or host_codec)
        self._is_same_codec = registry.describe(device_codec) == registry.describe(host_codec)
        self._reset()

    def _reset(self) -> None:
        self._window = new_window(self.spec, self.turn, self.device_codec)
        self._signals = Signals(self.spec)
        self._entries: Catalog[Entry] = Catalog()
        self._parked.close()
        self._parked = self._parked.blank()
        self._next_id = self._position_bytes = 0
        self._open: Chunk | None = None
        self._queries: dict[int, Tensor] = {}
        self._views: weakref.WeakSet[QuestionView] = weakref.WeakSet()

    @property
    def host_budget_bytes(self) -> int | None:
        """What parked blocks may take of the host's memory; set anew, it holds for what is parked from then on."""
        return self._parked.host_budget_bytes

    @host_budget_bytes.setter
    def host_budget_bytes(self, num_bytes: int | None) -> None:
        self._parked.host_budget_bytes = num_bytes

    # ----------------------------------------------------------------------------------------------------- writing

    @property
    def spans(self) -> Spans:
        """All blocks in stream order, both tiers, as they are now."""
        return Spans(self._entries.copy())

    def begin(
        self,
        kind: SpanKind,
        start_s: float,
        end_s: float,
        positions: Tensor,
        extent: int,
        clock: int | None = None,
        *,
        causal: bool = True,
    ) -> Chunk:
        """Open the next block. `positions` are int64 `[axes, tokens]` from the block's start; it reaches `extent` far.
        With a `clock` it is a part of one long video with its neighbours that have one (see `Placing`). Not `causal`:
        its tokens all see each other, and have to be read in one pass.

        Raises `CapacityError` when the device budget has no room and `InputError` for a wrong request; nothing is
        changed then.
        """
        end_open(self, "a chunk of this store is still open")
        if positions.ndim != 2 or positions.shape[0] != self.spec.position_axes or not positions.shape[1]:
            wanted = f"[{self.spec.position_axes}, tokens]"
            raise InputError("a block needs positions for each axis", given=str(list(positions.shape)), do=wanted)
        if kind == "prefix" and self._next_id:
            raise InputError("the prefix is the first block of a store", do="begin it before any frame")
        num_tokens = positions.shape[1]
        most_rows = self._most_rows(num_tokens)
        positions, written = positions.to(self.spec.device, torch.int64), self._window.placing.peek(clock)
        block = Block(self._next_id, num_tokens, extent, positions, clock, written)
        shape = (self.spec.num_layers, self.spec.num_kv_heads, num_tokens, self.spec.head_dim)
        raw = allocate(shape, self.spec.dtype, self.spec.device)
        self._signals.reserve()
        self._window.reserve(num_tokens, most_rows)
        self._open = Chunk(self, block, kind, start_s, end_s, raw, causal)
        return self._open

    def _seal(self, chunk: Written, block: Block, kind: SpanKind, start_s: float, end_s: float) -> Span:
        self._signals.add(block.id, chunk.raw)
        self._window.append(block, is_prefix=kind == "prefix")
        span = Span(block.id, kind, block.num_tokens, start_s, end_s)
        self._entries[block.id] = Entry(span, block)
        self._position_bytes += block.positions.nbytes
        self._next_id += 1
        self._open = None
        if chunk.queries is not None and kind != "prefix":
            self._queries[block.id] = chunk.queries  # until the plan for it is carried out
        return span

    def raw_keys(self, block: int) -> Tensor:
        """Keys of a block on the device without their rotation, `[layers, kv_heads, tokens, head_dim]`: a copy."""
        known = self._entries[block].block
        return rotate(self._window.written_keys(known), *self.turn(-moved(known.positions, known.written)))

    def queries(self, block: int) -> Tensor:
        """Rotated queries of the last tokens of a block that was stored just now, `[layers, query_heads, newest,
        head_dim]`, as many as `num_queries` says."""
        return self._queries[block]

    def is_sure_of_room(self, num_tokens: int) -> bool:
        """Whether no budget can refuse a block of up to so many tokens, nor whatever is parked for it."""
        # As if all lay as it is computed: blocks in codes may have to, where others leave before them.
        rows = self._window.num_rows + self._window.coded_tokens + num_tokens + TEXT_TOKENS
        # A row costs most where it is a block by itself.
        parked, device = rows * encoded_bytes(self.spec, self.host_codec, 1), self.device_budget_bytes
        if not self._parked.is_sure_of_room(parked):
            return False
        beside = self._beside(num_tokens) + (rows - num_tokens) * self.spec.position_axes * 8
        return device is None or beside + rows * Arena.row_bytes(self.spec) <= device

    def check_beside(self, num_bytes: int) -> None:
        """Raise `CapacityError` when so many bytes, held elsewhere for this stream, exceed its device budget."""
        parts = self.num_bytes().items()
        held = sum(size for name, size in parts if name.startswith("device") and name != "device_views")
        if self.device_budget_bytes is not None and held + num_bytes > self.device_budget_bytes:
            raise CapacityError(
                "what the memory holds, or a question reads of it, does not fit on the device",
                given=f"{held + num_bytes} bytes needed, {self.device_budget_bytes} allowed",
                do="raise the device budget, keep fewer tokens per frame, or let the memory hold fewer frames",
            )

    def _beside(self, num_tokens: int) -> int:
        """Device bytes beside the rows once a block of this size is being written."""
        new = num_tokens * (self.spec.position_axes * 8 + self.spec.kv_bytes_per_token // 2)
        groups = self.spec.num_query_heads // self.spec.num_kv_heads
        new += min(num_tokens, self.num_queries) * groups * self.spec.kv_bytes_per_token // 2
        if not self.device_codec.plain:
            new += encoded_bytes(self.spec, self.device_codec, num_tokens)
        return self._signals.bytes_after_reserve() + self._position_bytes + self._window.beside_bytes() + new

    def _most_rows(self, num_tokens: int) -> int:
        """How many arena rows the device budget allows once a block of this size is there."""
        wanted = self._window.num_rows + num_tokens
        if self.device_budget_bytes is None:
            return 2**62
        beside = self._beside(num_tokens)
        row_bytes = Arena.row_bytes(self.spec)
        most = (self.device_budget_bytes - beside) // row_bytes
        if wanted > most:
            raise CapacityError(
                "the stream's keys and values do not fit on the device",
                given=f"{beside + wanted * row_bytes} bytes needed, {self.device_budget_bytes} allowed",
                do="raise the device budget, keep fewer tokens per frame, or choose a memory that parks or forgets",
            )
        return most

    # --------------------------------------------------------------------------------------------------- decisions

    def apply(self, plan: Plan, pick: Pick | None = None) -> None:
        """Carry out a plan; `pick` says which rows of melting blocks stay. Raises `InputError` or `CapacityError` (host
        budget, or no memory) before anything is done."""
        self._queries.clear()
        if plan.melt:
            self._melt(plan, pick)
            return
        if not plan.park and not plan.forget:
            return
        self._check(plan)
        slabs = {block: self._slab(block) for block in plan.park}
        spilled = self._parked.spilled(slabs, set(plan.forget))
        leaving = set(plan.park).union(block for block in plan.forget if block not in self._parked.blocks)
        self._window.remove({self._entries[block].block.id for block in leaving})
        for block, slab in (slabs | spilled).items():
            self._parked.put(block, slab)
        for block in plan.park:
            entry = self._entries[block]
            self._entries[block] = Entry(dataclasses.replace(entry.span, tier=Tier.HOST), entry.block)
        for block in plan.forget:
            entry = self._entries.remove(block)
            if block in self._parked.blocks:
                self._parked.remove(block)
            self._position_bytes -= entry.block.positions.nbytes
            self._signals.forget(block)

    def _melt(self, plan: Plan, pick: Pick | None) -> None:
        if plan.park or plan.forget or pick is None:
            given = f"park {list(plan.park)}, forget {list(plan.forget)}"
            raise InputError("a plan that melts does nothing else", given=given, do="leave that for the next frame")
        self._check(plan)
        window, layers, heads = self._window, self.spec.num_layers, self.spec.num_kv_heads
        run = list({self._entries[block].block.id: self._entries[block].block for block in plan.melt}.values())
        if window.members(block.id for block in run) != list(plan.melt) or not window.are_neighbours(run):
            do = "name all blocks of a run on the device, in order"
            raise InputError("only neighbours can be melted together", given=str(list(plan.melt))[:200], do=do)
        sizes = [block.num_tokens for block in run]
        keys, values = window.lay_open(run)
        index = pick(keys, values, sizes)
        check_pick(index, layers, heads, sum(sizes))
        melted, spans = self._owned(plan.melt, run, index)
        block = window.melt(run, index, melted, plan.packs)
        for span in spans:
            self._position_bytes -= self._entries[span.id].block.positions.nbytes
            self._entries[span.id] = Entry(span, block)
        for name in set(plan.melt).difference(melted.blocks):
            self._position_bytes -= self._entries.remove(name).block.positions.nbytes
            self._signals.forget(name)

    def _owned(self, named: Sequence[int], run: list[Block], index: Tensor) -> tuple[Melted, list[Span]]:
        """Whose the rows are that stay, and the spans of those that still have some."""
        device, place, parts = self.spec.device, 0, []
        for block in run:
            known = self._window.melted.get(block.id)
            own = torch.zeros(*index.shape[:2], block.num_tokens, dtype=torch.int32, device=device)
            parts.append((own if known is None else known.owners) + place)
            place += 1 if known is None else len(known.blocks)
        all_owned = Melted(tuple(named), torch.cat(parts, dim=2).gather(2, index))
        shares = all_owned.shares()
        left = [n for n, share in enumerate(shares) if share > 0]
        places = torch.zeros(len(named), dtype=torch.int32)
        places[left] = torch.arange(len(left), dtype=torch.int32)
        owners = places.to(device)[all_owned.owners]
        counts = whole_counts([shares[n] for n in left])
        spans = [
            dataclasses.replace(self._entries[named[n]].span, num_tokens=count)
            for n, count in zip(left, counts, strict=True)
        ]
        return Melted(tuple(span.id for span in spans), owners), spans

    def take_back(self, span: Span) -> None:
        """The newest block, sealed just now, was never there. Needs no memory."""
        assert span.id == self._next_id - 1 and self._open is None, "only the newest block can be taken back"
        self.apply(Plan(forget=(span.id,)))
        self._next_id = span.id

    def _check(self, plan: Plan) -> None:
        end_open(self, "a plan cannot be carried out while a chunk is open")
        named = plan.park + plan.forget + plan.melt
        if len(set(named)) != len(named):
            raise InputError("a plan names a block twice", given=str(sorted(named)), do="park, forget or melt, once")
        if unknown := [block for block in named if block not in self._entries]:
            raise InputError("a plan names blocks that are not stored", given=str(unknown), do="use ids of `spans`")
        prefix = self._window.prefix
        if prefix is not None and prefix.id in named:
            raise InputError(
                "the prefix can be neither parked nor forgotten nor melted", given=str(prefix.id), do="leave it out"
            )
        if parked := [block for block in plan.park + plan.melt if block in self._parked.blocks]:
            raise InputError(
                "a plan parks or melts blocks that are parked already", given=str(parked), do="leave them out"
            )
        runs = {self._entries[block].block.id for block in plan.park + plan.forget}.intersection(self._window.melted)
        if plan.park and runs.intersection(self._entries[block].block.id for block in plan.park):
            raise InputError(
                "melted blocks cannot be parked", given=str(list(plan.park))[:200], do="forget or keep them"
            )
        if partly := [block for run in runs for block in self._window.melted[run].blocks if block not in plan.forget]:
            do = "forget all of them"
            raise InputError("blocks that were melted together leave together", given=f"{partly} would stay", do=do)
        self._parked.check([self._entries[block].span.num_tokens for block in plan.park], plan.forget)

    def _slab(self, block: int) -> Coded:
        """A resident block as it lies in the host tier: its keys as they were written, and its values, encoded."""
        known, coded = self._entries[block].block, self._window.coded.get(block)
        if coded is not None and self._is_same_codec:  # encoded once: the codes travel
            return hold(self.spec, self.host_codec, coded.num_tokens, coded.parts)
        return park(self.spec, self.host_codec, self._window.written_keys(known), self._window.values(known))

    # --------------------------------------------------------------------------------------------------- questions

    def question(
        self,
        choose: Choose,
        *,
        visible: tuple[float, float] | None = None,
        scored: bool = False,
        scoring: Scoring = "mean",
        held: Sequence[Held] = (),
        layered: bool = False,
    ) -> QuestionView:
        """Open a question on what is stored now; the stream may go on meanwhile and is not touched.

        `choose(layer, spans, scores)` returns the `Recall`: once, with layer 0 and no scores; for every layer now if
        `layered`; or, if `scored`, for every layer during `QuestionView.retrieval`. `visible` leaves only spans to
        choose from that lie wholly between two times (seconds). The prefix is always part of the context. `held` blocks
        come behind it and are read by the question itself. Opening costs the same however much is stored. Raises
        `CapacityError` when the context does not fit beside the stream.
        """
        view = QuestionView(self, choose, visible, scored, scoring, held, layered)
        self._views.add(view)
        return view

    # ---------------------------------------------------------------------------------------------- whole-store acts

    def num_bytes(self) -> dict[str, int]:
        """Bytes held, by tier and kind. Device rows count with their room to grow; views with the rows they keep."""
        return {
            "device_rows": self._window.arena.num_bytes(),
            "device_codes": self._window.beside_bytes() - self._window.anchor_bytes(),
            "device_anchors": self._window.anchor_bytes(),
            "device_signals": self._signals.num_bytes(),
            "device_positions": self._position_bytes,
            "device_owners": sum(one.owners.nbytes for one in self._window.melted.values()),
            "device_views": sum(view.num_bytes() for view in self._views),
            "host_rows": self._parked.host_bytes,
            "disk_rows": self._parked.disk_bytes,
        }

    def fork(self) -> "KVStore":
        """An independent copy. Parked blocks are shared, as nobody ever writes to them; an open chunk is left out."""
        twin = KVStore(
            self.spec,
            self.rotary,
            device_budget_bytes=self.device_budget_bytes,
            host_budget_bytes=self.host_budget_bytes,
            device_codec=self.device_codec,
            host_codec=self.host_codec,
            disk=self._parked.tier,
            disk_codec=self._parked.disk_codec,
            num_queries=self.num_queries,
            turn=self.turn,
        )
        twin._window = self._window.twin()
        twin._signals.load(list(self._signals.rows), self._signals.export())
        twin._entries, twin._parked = self._entries.copy(), self._parked.twin()
        twin._next_id, twin._position_bytes = self._next_id, self._position_bytes
        return twin

    def unshare(self) -> None:
        """Hold alone the codes on the device that a fork shares with what it was forked from, as a stream that was
        watched by itself does: for whoever measures how many fit. Raises `CapacityError` when there is no memory."""
        self._window.unshare()

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, on the CPU, and JSON-able facts about them, from which `load` makes the same store."""
        return snapshot.export(self)

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace everything by what `export` gave. Raises `InputError` if it belongs to a model of other sizes."""
        snapshot.load(self, tensors, facts)

    def close(self) -> None:
        """Let go of everything held. The store is empty afterwards; open questions keep what they see."""
        self._reset()
