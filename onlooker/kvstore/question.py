"""A question beside the stream: it sees frozen blocks and grows a tail of its own, and nothing else changes."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import SAID_GAP, Recall, SaidPlace, Scoring, Span, SpanKind
from onlooker.kvstore.arena import RowClaim, allocate
from onlooker.kvstore.blocks import Block, Entry
from onlooker.kvstore.catalog import Catalog, Spans
from onlooker.kvstore.context import Context, Sources
from onlooker.kvstore.refining import Pick, RefiningSegment
from onlooker.kvstore.rows import block_shares, gathered, layers_alike, new_ledger, pick_rows, side_by_side, wanted_rows
from onlooker.kvstore.segments import Retrieval, TailSegment
from onlooker.kvstore.signals import tell_scores

if TYPE_CHECKING:
    from onlooker.kvstore.store import KVStore

Choose = Callable[[int, Sequence[Span], Tensor | None], Recall]
"""(layer, spans, scores float32 `[spans]` on the CPU or None) to what that layer may see. With scoring `queries`, the
scores are the layer's raw queries `[query_heads, tokens, head_dim]`; with `heads` they are `[query_heads, spans]`, and
it is asked once more behind the last layer, without any, for what all layers see."""

LEAST_TAIL_ROWS = 64


@dataclass(frozen=True, eq=False)
class Held:
    """A block that is not in the store: what it is made of is not complete yet, or the memory holds it as tokens. The
    question reads it itself, between what is stored and its own words."""

    start_s: float
    end_s: float
    positions: Tensor
    """From the block's start, int64 `[axes, tokens]`."""
    extent: int
    clock: int | None = None
    """As in `KVStore.begin`."""
    kind: SpanKind = "vision"


class QuestionView:
    """What one question sees, fixed when it was opened. Made by `KVStore.question`; use it with `with`, or `close` it.

    1. If the question is scored: run its words once through `retrieval`. In every layer it scores all blocks,
       asks the policy, freezes the layer's context, and attends to it, so deeper layers ask with what was found.
    2. `segment` for the prompt, then for every decoded token: they see the context and what the view read before.

    While the view lives, the stream may write, park, forget and renumber: rows that the view reads are not
    overwritten (the store moves to a fresh arena instead).
    """

    def __init__(
        self,
        store: "KVStore",
        choose: Choose,
        visible: tuple[float, float] | None,
        scored: bool,
        scoring: Scoring = "mean",
        held: Sequence[Held] = (),
        layered: bool = False,
    ) -> None:
        """See `KVStore.question`."""
        window, spans = store._window, store.spans
        spec = self.spec = store.spec
        self.spans: Spans = spans if visible is None else spans.between(*visible)
        """What there was to choose from, in stream order; the prefix is always among it."""
        self._store, self._choose = store, choose
        self._scoring: Scoring = scoring
        self.held_spans = tuple(
            Span(store._next_id + n, one.kind, one.positions.shape[1], one.start_s, one.end_s)
            for n, one in enumerate(held)
        )
        """What the question reads itself, under numbers that nobody else has yet."""
        entries = store._entries.copy()
        for span, one in zip(self.held_spans, held, strict=True):
            block = Block(span.id, span.num_tokens, one.extent, one.positions.to(self.spec.device), one.clock)
            entries[span.id] = Entry(span, block)
        self._sources = Sources(
            store.spec,
            store.rotary,
            entries,
            window.arena,
            window.rows.copy(),
            window.moved,
            window.written,
            window.melted,
            store._parked.blocks.copy(),
            *(window.coded.copy(), window.coded_rows()),
            window.placing.copy(),
            store.turn,
            tuple(entries[span.id].block for span in self.held_spans),
        )
        self._prefix = tuple(span.id for span in self.spans[:1] if span.kind == "prefix")
        self._contexts: list[Context] = []
        self._whole: Context | None = None
        """The contexts of all layers in one piece, where all are of one size."""
        self._ledgers: list[Tensor] = []
        """Of each context, float32 `[layers, rows]`: attention of the cited tokens; `[layers, kv_heads, rows]` where
        each head sees other rows."""
        self._looked: tuple[list[Context], list[Tensor]] = ([], [])
        """What layers saw before it was refined, and where the last word looked then."""
        self._refining: RefiningSegment | None = None
        self._num_cited = 0
        self._closed = False
        self._num_tail, self._tail_reach, self._said_reach, self._num_held = 0, 0, 0, 0
        self._held_tokens = sum(span.num_tokens for span in self.held_spans)
        self._tail = self._new_tail(0)
        self._reader: RowClaim | None = RowClaim(window.head, window.tail)
        if scored:
            window.arena.readers.add(self._reader)
            self._means = store._signals.means
            self._signal_rows = store._signals.rows_of(self.spans)
            return
        layers = range(spec.num_layers if layered else 1)
        all_chosen = [self._chosen(choose(layer, self.spans, None)) for layer in layers]
        if len(set(all_chosen)) > 1:
            self._reader = None
            self._freeze_layers(all_chosen)
            return
        chosen = all_chosen[0]
        rows = window.read(list(chosen))
        if rows is not None:
            window.arena.readers.add(self._reader)
            self._freeze(self._sources.resident(chosen, rows))
        else:
            self._reader = None
            layers = range(self.spec.num_layers)
            self._check_room(chosen, len(layers))
            self._freeze(gathered(self._sources, chosen, layers))

    # ----------------------------------------------------------------------------------------------------- reading

    def retrieval(self, positions: Tensor, extent: int) -> Retrieval:
        """The first pass of a scored question: positions int64 `[axes, tokens]` of the words that look for memories.

        Its keys and values are thrown away. Every layer waits once for its scores to reach the policy: the choice is
        made on the CPU.
        """
        self._check_open()
        if self._contexts:
            raise InputError("this question has its context already", do="open a new one")
        return Retrieval(self, positions.to(self.spec.device))

    def segment(self, positions: Tensor, extent: int, *, cited: bool = True, said: SaidPlace = "behind") -> TailSegment:
        """The next tokens of the question or its answer, positions int64 `[axes, tokens]` from the segment's start.

        Attend in every layer before the next segment is made. `cited`: count where its last token looks. `said`: where
        an answer's tokens count their positions.
        """
        if self._num_held < len(self.held_spans):
            raise InputError("what is held comes before the question's words", do="read `held_segment` first")
        positions = positions.to(self.spec.device)
        if said == "behind":
            segment = self._next_segment(positions, range(0), cited)
            self._tail_reach += extent
            return segment
        start = self._tail_reach + SAID_GAP if said == "gap" else 0
        segment = self._next_segment(positions, range(0), cited, start + self._said_reach, own=said == "own")
        self._said_reach += extent
        return segment

    def refining_segment(
        self, positions: Tensor, extent: int, *, layer: int, pick: Pick, trims_all: bool
    ) -> RefiningSegment:
        """As `segment`, for the words of a question that refine what is before them (see `RefiningSegment`)."""
        if self._sources.melted:
            do = "use another memory, or no refiner"
            raise InputError("a question cannot be refined over melted blocks", given="both were chosen", do=do)
        words = self.segment(positions, extent)
        if self._whole is not None and self._whole.coded is not None:
            # Single rows of it will be picked: from here on it lies as the model computes it.
            self._check_room(self._whole.blocks, self.spec.num_layers)
            self._whole = self._whole.decoded()
            self._contexts = self._whole.layers()
        self._refining = RefiningSegment(self, words, layer, pick, trims_all)
        return self._refining

    def held_segment(self, count: int = 1) -> TailSegment:
        """The tokens of the next blocks that were held, one after the other, to be read before the question's words."""
        held = range(self._num_held, self._num_held + count)
        self._num_held += count
        positions = torch.cat([self._sources.held[n].positions for n in held], dim=1)
        return self._next_segment(positions, held, cited=False)

    def _next_segment(
        self, positions: Tensor, held: range, cited: bool, reach: int | None = None, own: bool = False
    ) -> TailSegment:
        self._check_open()
        self._settle()
        if len(self._contexts) < self.spec.num_layers:
            raise InputError("a scored question reads nothing before its retrieval", do="run `retrieval` first")
        num_tokens = positions.shape[1]
        if self._num_tail + num_tokens > self._tail.shape[3]:
            larger = self._new_tail(max(LEAST_TAIL_ROWS, 2 * self._num_tail, self._num_tail + num_tokens))
            larger[:, :, :, : self._num_tail] = self._tail[:, :, :, : self._num_tail]
            self._tail = larger
        reach = self._tail_reach if reach is None else reach
        segment = TailSegment(self, positions, held, reach, self._num_tail, cited, own)
        self._num_tail += num_tokens
        self._num_cited += cited
        return segment

    # ---------------------------------------------------------------------------------------------------- afterwards

    def attention_mass(self) -> dict[int, float]:
        """Share of attention per block of the context, averaged over heads, layers and cited tokens.

        What is missing to 1 went to the question itself. One host sync. Empty before anything was read.
        """
        if not self._num_cited or self._closed:
            return {}
        self._settle()
        weights = [row for ledger in self._ledgers for row in ledger]
        held = [span.id for span in self.held_spans] if self._held_tokens else []
        seen, weights = [*self._contexts, *self._looked[0]], [*weights, *self._looked[1]]
        shares = block_shares(seen, weights, self._sources.entries, held)
        count = self.spec.num_layers * self._num_cited
        return {block: share / count for block, share in shares.items()}

    def recalled(self) -> dict[int, int]:
        """In how many layers each block of the context was seen."""
        self._settle()
        own = self.held_spans if self._held_tokens and self._contexts else ()
        counts = {span.id: len(self._contexts) for span in own}
        for rows, layers in layers_alike(self._contexts, self._sources.entries):
            for block, seen in rows.items():
                counts[block] = counts.get(block, 0) + layers * (seen > 0)
        return counts

    def context_tokens(self) -> float:
        """Tokens that the question saw of what was before it, mean over layers and heads."""
        self._settle()
        alike = layers_alike(self._contexts, self._sources.entries)
        total = sum(layers * sum(rows.values()) for rows, layers in alike)
        return self._held_tokens + total / max(1, len(self._contexts))

    def find(self, block: int) -> Span | None:
        """A block there was to choose from, or that was held; None for another."""
        held = next((span for span in self.held_spans if span.id == block), None)
        return held or self.spans.find(block)

    def num_bytes(self) -> int:
        """Device bytes that exist because of this view; an arena the stream has left counts for each view of it."""
        left = self._reader is not None and self._sources.arena is not self._store._window.arena
        kept = self._sources.arena.num_bytes() if left else 0
        there = self._store._window.coded
        kept += sum(one.nbytes for n, one in self._sources.coded_blocks() if self._reader and n not in there)
        return kept + self._tail.nbytes + sum(context.owned_bytes for context in self._contexts)

    def close(self) -> None:
        """Let go of everything; closing twice is allowed."""
        if self._reader is not None:
            self._sources.arena.readers.discard(self._reader)
        self._closed, self._reader = True, None
        self._contexts, self._whole, self._ledgers, self._tail = [], None, [], self._new_tail(0)
        self._sources.lent.end()
        self._forget_sources()

    def __enter__(self) -> "QuestionView":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------- inside

    def _choose_layer(self, layer: int, queries: Tensor, scale: float) -> Context:
        """Score all blocks with this layer's raw queries `[query_heads, tokens, head_dim]`, choose, gather, freeze."""
        assert layer == len(self._contexts), f"layer {layer} attended when {len(self._contexts)} was next"
        means, heads = self._means[layer][self._signal_rows], self.spec.num_kv_heads
        recall = self._choose(layer, self.spans, tell_scores(self._scoring, means, queries, heads, scale))
        chosen = self._chosen(recall)
        rows = wanted_rows(recall, chosen, self._sources.entries)
        fetched = chosen if rows is None else rows.blocks
        self._check_room(fetched, 1)
        context = gathered(self._sources, chosen, range(layer, layer + 1), fetched)
        self._freeze(context if rows is None else pick_rows(context, rows.picked[None], rows.counts))
        context = self._contexts[-1]
        if len(self._contexts) == self.spec.num_layers:
            if self._scoring == "heads":
                self._choose_for_all()
            assert self._reader is not None
            self._sources.arena.readers.discard(self._reader)
            self._reader, self._means = None, self._means[:, :0]
            self._forget_sources()
            if self._whole is None:
                self._join()
        return context

    def _choose_for_all(self) -> None:
        """All layers have told what they look at: what each of them sees from here on is chosen once more."""
        chosen = self._chosen(self._choose(self.spec.num_layers, self.spans, None))
        self._contexts, self._ledgers = [], []
        self._check_room(chosen, self.spec.num_layers)
        self._freeze(gathered(self._sources, chosen, range(self.spec.num_layers)))

    def _freeze_layers(self, chosen: Sequence[tuple[int, ...]]) -> None:
        """Gather what each layer was allowed to see, neighbours that see the same together."""
        start = 0
        for blocks, same in itertools.groupby(chosen):
            layers = range(start, start := start + len(list(same)))
            self._check_room(blocks, len(layers))
            self._freeze(gathered(self._sources, blocks, layers))
        self._forget_sources()
        self._join()

    def _freeze(self, context: Context) -> None:
        self._ledgers.append(new_ledger(context, self._held_tokens))
        self._contexts += context.layers()
        if len(context.keys) == self.spec.num_layers:
            self._whole = context

    def _join(self) -> None:
        """Lay the contexts of all layers side by side: then a packed pass can take them, though each sees others."""
        joined = side_by_side(self._contexts)
        if joined is None:
            return
        self._whole, self._contexts = joined[0], joined[1:]
        apart = any(ledger.ndim == 3 for ledger in self._ledgers)
        self._ledgers = [new_ledger(self._whole, self._held_tokens, apart)]

    def _settle(self) -> None:
        """Words that refine have been read: from here on every layer sees what they left."""
        if self._refining is None or not self._refining.done:
            return
        contexts, *self._looked = self._refining.settle()  # pyright: ignore[reportAttributeAccessIssue]
        own, self._refining, self._held_tokens = self._held_tokens, None, 0
        self._tail, self._num_tail = self._tail[:, :, :, own:], self._num_tail - own
        self._whole, self._contexts = None, contexts
        self._ledgers = [new_ledger(context, 0) for context in contexts]
        self._join()

    def _forget_sources(self) -> None:
        """Let go of parked keys and values: what was chosen of them has been copied."""
        self._sources = dataclasses.replace(self._sources, host=Catalog(), coded=Catalog(), coded_rows=None)

    def _chosen(self, recall: Recall) -> tuple[int, ...]:
        blocks = recall.blocks
        if unknown := [block for block in blocks if self.spans.find(block) is None]:
            raise InputError("the memory recalls blocks the question may not see", given=str(unknown), do="use `spans`")
        if any(after <= before for before, after in itertools.pairwise(blocks)):
            raise InputError("recalled blocks must ascend", given=str(blocks), do="sort them, each once")
        return blocks if blocks[:1] == self._prefix or not self._prefix else self._prefix + blocks

    def _check_room(self, chosen: tuple[int, ...], num_layers: int) -> None:
        budget = self._store.device_budget_bytes
        if budget is None:
            return
        spec = self.spec
        more = self._sources.num_tokens(chosen) * spec.kv_bytes_per_token * num_layers // spec.num_layers
        own = 0 if self in self._store._views else self.num_bytes()
        held = sum(size for name, size in self._store.num_bytes().items() if name.startswith("device"))
        if held + own + more > budget:
            raise CapacityError(
                "what the question sees does not fit on the device beside the stream",
                given=f"{held + own + more} bytes needed, {budget} allowed",
                do="recall fewer blocks, close other questions, or raise the device budget",
            )

    def _new_tail(self, rows: int) -> Tensor:
        """Rotated keys and values of what the view read, `[2, layers, kv_heads, rows, head_dim]`."""
        spec = self.spec
        return allocate((2, spec.num_layers, spec.num_kv_heads, rows, spec.head_dim), spec.dtype, spec.device)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the question is closed", do="ask again")
