"""A block while it is being written: its tokens attend to all that is resident before them, and to themselves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.core.spans import Span, SpanKind
from onlooker.kernels.coded_rows import CodedRows, in_kernels
from onlooker.kernels.packed_attention import SegmentRows
from onlooker.kvstore.arena import allocate
from onlooker.kvstore.attention import Turned, attend_causally, causal_mask
from onlooker.kvstore.blocks import Block
from onlooker.kvstore.rotation import moved, rotate

if TYPE_CHECKING:
    from onlooker.kvstore.store import KVStore


class Written(Protocol):
    """What a store seals."""

    raw: Tensor
    """Un-rotated keys, `[layers, kv_heads, tokens, head_dim]`."""
    queries: Tensor | None


def end_open(store: "KVStore", what: str) -> None:
    """Nothing of a store may be half written now; what was read ahead and is not sealed is given up. Raises
    `InputError`, with `what`, when something else is."""
    if store._open is not None and not store._open.gives_way:
        raise InputError(what, do="seal or abort it first")
    store._open = None


@dataclass
class _Shared:
    """What all layers of a chunk need."""

    own: tuple[tuple[Tensor, ...], ...]
    """Where its rotated keys, values and raw keys go, layer by layer, each `[kv_heads, tokens, head_dim]`."""
    seen_keys: tuple[Tensor, ...]
    """Rotated keys of all that it sees, itself included, layer by layer."""
    seen_values: tuple[Tensor, ...]
    mask: Tensor | None
    coded: CodedRows | None
    """What it sees between the resident rows and its own."""
    angles: tuple[Tensor, Tensor] | None = None
    """Cosines and sines, once they were needed."""


class Chunk:
    """One block on its way into the store: attend in every layer, then `seal` it or `abort`.

    Made by `KVStore.begin`; a store has at most one at a time.
    """

    def __init__(
        self, store: "KVStore", block: Block, kind: SpanKind, start_s: float, end_s: float, raw: Tensor, causal: bool
    ) -> None:
        """`raw` is room for its un-rotated keys, `[layers, kv_heads, tokens, head_dim]`, until it is sealed."""
        self.causal = causal
        self.gives_way = False
        """Whether it is given up for whoever wants to write (see `Together`)."""
        window = store._window
        self._store, self._block, self._times, self.raw = store, block, (start_s, end_s), raw
        self._kind: SpanKind = kind
        self._head, self._tail, self._end = window.head, window.tail, window.tail + block.num_tokens
        self._coded = window.coded_rows()
        self._shared: _Shared | None = None
        self._written = 0
        spec, count = store.spec, min(store.num_queries, block.num_tokens)
        self.queries: Tensor | None = None
        """Rotated queries of its newest tokens, `[layers, query_heads, newest, head_dim]`, if somebody asks."""
        if count:
            self.queries = allocate(
                (spec.num_layers, spec.num_query_heads, count, spec.head_dim), spec.dtype, spec.device
            )

    def places(self) -> Tensor:
        """Behind all that is resident (see `Segment.places`)."""
        return moved(self._block.positions, self._block.written)

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, turned: Turned = None
    ) -> Tensor:
        """Write this layer's keys and values and attend (see `Segment.attend`). Once per layer."""
        self._check_open()
        assert keys.shape[1] == self._block.num_tokens, f"{keys.shape[1]} keys for {self._block.num_tokens} positions"
        shared = self._shared or self._prepare()
        if turned is None:
            if shared.angles is None:
                shared.angles = self._store.rotary(self.places())
            turned = rotate(queries, *shared.angles), rotate(keys, *shared.angles)
        for own, given in zip(shared.own, (turned[1], values, keys), strict=True):
            own[layer].copy_(given)
        if self.queries is not None:
            self.queries[layer].copy_(turned[0][:, -self.queries.shape[2] :])
        self._written += 1
        seen_keys, seen_values = shared.seen_keys[layer], shared.seen_values[layer]
        if shared.coded is not None:
            lead = self._tail - self._head
            both = zip((seen_keys, seen_values), shared.coded.read(layer), strict=True)
            seen_keys, seen_values = (torch.cat((own[:, :lead], far, own[:, lead:]), dim=1) for own, far in both)
        return attend_causally(turned[0], seen_keys, seen_values, shared.mask, scale)

    def _prepare(self) -> "_Shared":
        """What is the same in every layer, or is cut into layers, made once."""
        spec, arena = self._store.spec, self._store._window.arena
        seen, new = slice(self._head, self._end), slice(self._tail, self._end)
        num_seen = self._end - self._head + (0 if self._coded is None else self._coded.num_rows)
        self._shared = _Shared(
            own=(*(tensor[:, :, new].unbind(0) for tensor in arena.tensors), self.raw.unbind(0)),
            seen_keys=arena.keys[:, :, seen].unbind(0),
            seen_values=arena.values[:, :, seen].unbind(0),
            mask=causal_mask(spec, self._block.num_tokens, num_seen) if self.causal else None,
            coded=self._coded,
        )
        return self._shared

    def shared(self, layer: int) -> None:
        """None: it is read by itself."""

    def rows(self) -> SegmentRows | None:
        """All that is resident as the past, and the rows behind it (see `Segment.rows`)."""
        self._check_open()
        if not in_kernels(self._coded, self._store.spec.device):
            return None
        assert not self._written, "a chunk is either attended layer by layer or handed out, once"
        self._written = self._store.spec.num_layers
        arena, seen, new = self._store._window.arena, slice(self._head, self._tail), slice(self._tail, self._end)
        return SegmentRows(
            past_keys=arena.keys[:, :, seen],
            past_values=arena.values[:, :, seen],
            own_keys=arena.keys[:, :, new],
            own_values=arena.values[:, :, new],
            own_raw=self.raw,
            own_before=0,
            positions=self._block.positions,
            offset=self._block.written,
            causal=self.causal,
            own_queries=self.queries,
            asked_from=0 if self.queries is None else self._block.num_tokens - self.queries.shape[2],
            coded=self._coded,
        )

    def seal(self) -> Span:
        """Make it an immutable block of the store and compute its signals. No host sync."""
        self._check_open()
        layers = self._store.spec.num_layers
        assert self._written == layers, f"{self._written} of {layers} layers were written"
        return self._store._seal(self, self._block, self._kind, *self._times)

    def abort(self) -> None:
        """Give up: the store holds what it held before. Aborting twice, or after the store was closed, is allowed."""
        if self._store._open is self:
            self._store._open = None

    def _check_open(self) -> None:
        if self._store._open is not self:
            raise InputError("the chunk is no longer open", do="begin a new one")
