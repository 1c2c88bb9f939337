"""The attention arithmetic: one causal piece, two pieces under one softmax, and many streams in one pass.

Legend: Hq query heads, H key-value heads, G = Hq / H, n queries, m keys, D head dimension.
Query heads that share a key-value head ride as extra query rows `[H, G * n, D]`, so keys are never repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.kernels.packed_attention import SegmentRows
from onlooker.kvstore.rotation import Rotary, rotate

QUERY_BLOCK = 64
"""Queries handled at once where logits are written out, which bounds their memory."""
MOST_LOGITS = 1 << 20
"""Logits up to which a CPU is quicker with them written out than with its fused attention: as many as stay in cache."""


Turned = tuple[Tensor, Tensor] | None
"""Queries and keys, rotated."""


class Segment(Protocol):
    """Tokens of one stream inside a pass: a chunk being stored, a retrieval, or a part of a question."""

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it. Tokens that all see each other are in one pass."""
        ...

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, turned: Turned = None
    ) -> Tensor:
        """Queries `[query_heads, tokens, head_dim]`, keys and values `[kv_heads, tokens, head_dim]`, un-rotated.

        `turned` are queries and keys rotated to `places`, by whoever did it for many segments at once; None: the
        segment does it. Returns `[tokens, query_heads, head_dim]`.
        """
        ...

    def places(self) -> Tensor | None:
        """Positions of its tokens, int64 `[axes, tokens]`; None when a layer's are only known while it attends."""
        ...

    def shared(self, layer: int) -> "SharedPast | None":
        """What it attends to before its own rows, where others may see the very same; None: it attends by itself."""
        ...

    def rows(self) -> SegmentRows | None:
        """Where its keys and values lie, for whoever attends to many segments at once, instead of `attend`.

        Taken once; the taker writes the new tokens' rows in every layer. None when it can only `attend`.
        """
        ...


class SharedPast(Protocol):
    """A segment in front of a past that others see, too (see `attend_together`)."""

    keys: Tensor
    """Rotated, `[kv_heads, rows, head_dim]`, where they lie for everyone."""
    values: Tensor

    def begin(self, queries: Tensor, keys: Tensor, values: Tensor, turned: Turned) -> "OnPast":
        """Its rotated queries and its own rows, the new ones among them."""
        ...

    def end(self, weights: Tensor) -> None:
        """Told where its last query looked: weights on the past and on the first `num_held` own rows."""
        ...


@dataclass(frozen=True, eq=False)
class OnPast:
    """What one segment brings before a shared past."""

    queries: Tensor
    """Rotated, `[Hq, n, D]`."""
    tail: tuple[Tensor, Tensor]
    """Rotated keys and values of its own rows, each `[H, t, D]`; the last n are those of the queries."""
    num_held: int = 0
    """Own rows of which it is told how they were looked at."""


class PackedAttention:
    """Attention of one model pass over the packed tokens of many segments (`core.contracts.Attention`).

    Every segment attends to its own stream only. This is the reference: one call per segment and layer, but for
    questions about the same moment of one stream, which go through what all of them see together (BatchLLM,
    arXiv 2412.03594): its keys and values are read once for all.
    """

    def __init__(self, segments: Sequence[tuple[Segment, int]], rotary: Rotary | None = None) -> None:
        """`segments` are (segment, number of tokens), in the order in which their tokens are packed. With `rotary` all
        tokens are rotated together, as far as their places are known; without, every segment rotates its own."""
        self._segments = tuple(segments)
        self._num_tokens = sum(count for _, count in self._segments)
        self._angles: tuple[Tensor, Tensor] | None = None
        self._known = [False] * len(self._segments)
        if rotary is not None:
            places = [segment.places() for segment, _ in self._segments]
            known = [place for place in places if place is not None]
            self._known = [place is not None for place in places]
            if known:
                every = [
                    known[0].new_zeros(len(known[0]), count) if place is None else place
                    for place, (_, count) in zip(places, self._segments, strict=True)
                ]
                self._angles = rotary(torch.cat(every, dim=1))

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention output `[tokens, query_heads, head_dim]`; see `core.contracts.Attention`."""
        assert queries.shape[1] == self._num_tokens, f"{queries.shape[1]} tokens for {self._num_tokens} packed ones"
        parts = [queries, keys, values]
        if self._angles is not None:
            parts += [rotate(queries, *self._angles), rotate(keys, *self._angles)]
        counts = [count for _, count in self._segments]
        split = [part.split(counts, dim=1) for part in parts]
        each = list(zip(split[0], split[1], split[2], strict=True))
        turned: list[Turned] = [
            (split[3][n], split[4][n]) if is_known else None for n, is_known in enumerate(self._known)
        ]
        outputs: list[Tensor | None] = [None] * len(each)
        for group in self._groups(layer) if len(each) > 1 else ():
            begun = [past.begin(*each[n], turned[n]) for n, past in group]
            for (n, past), (out, weights) in zip(
                group, attend_together(begun, group[0][1].keys, group[0][1].values, scale), strict=True
            ):
                outputs[n] = out
                past.end(weights)
        told = [
            segment.attend(layer, *each[n], scale, turned=turned[n]) if (out := outputs[n]) is None else out
            for n, (segment, _) in enumerate(self._segments)
        ]
        return told[0] if len(told) == 1 else torch.cat(told)

    def _groups(self, layer: int) -> list[list[tuple[int, SharedPast]]]:
        """Segments that see the same past, a few queries at a time, and which these are."""
        seen: dict[tuple[int, ...], list[list[tuple[int, SharedPast]]]] = {}
        room: dict[tuple[int, ...], int] = {}
        for n, (segment, count) in enumerate(self._segments):
            past = segment.shared(layer) if count <= QUERY_BLOCK else None
            if past is None:
                continue
            name = (past.keys.data_ptr(), past.values.data_ptr(), *past.keys.shape)
            if count > room.get(name, 0):
                seen.setdefault(name, []).append([])
                room[name] = QUERY_BLOCK
            seen[name][-1].append((n, past))
            room[name] -= count
        return [group for groups in seen.values() for group in groups if len(group) > 1]


def causal_mask(spec: ModelSpec, num_queries: int, num_keys: int) -> Tensor | None:
    """What is added to logits so that no query sees later keys, `[G * n, m]` in the model's dtype; the last query is
    the last key. None when it sees all of them."""
    if num_queries == 1:
        return None
    # Numbers and not booleans, tiled once: a CPU would turn them into numbers again in every layer.
    mask = torch.full((num_queries, num_keys), -torch.inf, dtype=spec.dtype, device=spec.device)
    return mask.triu_(num_keys - num_queries + 1).repeat(spec.num_query_heads // spec.num_kv_heads, 1)


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Rotated queries `[Hq, n, D]` over keys and values `[H, m, D]`; `[n, Hq, D]`. `mask` as from `causal_mask`."""
    query_heads, num_queries, dim = queries.shape
    heads, num_keys = keys.shape[:2]
    folded = queries.reshape(heads, -1, dim)
    written_out = folded.shape[0] * folded.shape[1] * num_keys <= MOST_LOGITS
    if mask is not None and written_out and queries.device.type == "cpu" and queries.dtype == torch.float32:
        logits = torch.baddbmm(mask, folded, keys.transpose(1, 2), alpha=scale)
        out = torch.bmm(logits.softmax(dim=-1), values)
    else:
        out = F.scaled_dot_product_attention(folded[None], keys[None], values[None], attn_mask=mask, scale=scale)
    return out.reshape(query_heads, num_queries, dim).transpose(0, 1)


def attend_context_and_tail(
    queries: Tensor,
    context: tuple[Tensor, Tensor],
    tail: tuple[Tensor, Tensor],
    scale: float,
    num_held: int = 0,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotated queries `[Hq, n, D]` over a frozen context and a causal tail that ends with the queries themselves.

    `context` and `tail` are (rotated keys, values), each `[H, m, D]`. One softmax in float32 spans both, and neither
    is copied. With `counts` (int32 `[H]`) each head sees so many rows of the context, the first ones. Returns the
    output `[n, Hq, D]` and the last query's weights on the context and on the first `num_held` rows of the tail,
    float32 `[Hq, m + num_held]`.
    """
    query_heads, num_queries, dim = queries.shape
    heads, num_context = context[0].shape[:2]
    num_tail = tail[0].shape[1]
    outputs, weights = [], queries.new_zeros(0)
    for start in range(0, num_queries, QUERY_BLOCK):
        block = queries[:, start : start + QUERY_BLOCK]
        count = block.shape[1]
        folded = block.reshape(heads, -1, dim)
        before = _product(folded, context[0].transpose(1, 2)) * scale
        if counts is not None:
            unseen = torch.arange(num_context, device=queries.device) >= counts[:, None, None]
            before = before.masked_fill(unseen, float("-inf"))
        within = _product(folded, tail[0].transpose(1, 2)) * scale
        if num_queries > 1:
            seen = torch.ones(count, num_tail, dtype=torch.bool, device=queries.device)
            seen = seen.tril(num_tail - num_queries + start)
            within = within.view(heads, -1, count, num_tail).masked_fill(~seen, float("-inf")).view_as(within)
        weights = torch.cat((before, within), dim=-1).softmax(dim=-1)
        on_context, on_tail = weights.split((num_context, num_tail), dim=-1)
        out = _product(on_context.to(context[1].dtype), context[1]) + _product(on_tail.to(tail[1].dtype), tail[1])
        outputs.append(out.to(queries.dtype).reshape(query_heads, count, dim))
        last = torch.cat((on_context, on_tail[..., :num_held]), dim=-1) if num_held else on_context
        weights = last.reshape(query_heads, count, num_context + num_held)
    return torch.cat(outputs, dim=1).transpose(0, 1), weights[:, -1]


def attend_together(parts: Sequence[OnPast], keys: Tensor, values: Tensor, scale: float) -> list[tuple[Tensor, Tensor]]:
    """As `attend_context_and_tail` of each, of segments before one past, `[H, m, D]` each, which is read once."""
    heads, num_past = keys.shape[:2]
    folded = [part.queries.reshape(heads, -1, keys.shape[-1]) for part in parts]
    sizes = [rows.shape[1] for rows in folded]
    before = (_product(torch.cat(folded, dim=1), keys.transpose(1, 2)) * scale).split(sizes, dim=1)
    weights = []
    for part, own, logits in zip(parts, folded, before, strict=True):
        (query_heads, count, _), num_tail = part.queries.shape, part.tail[0].shape[1]
        within = _product(own, part.tail[0].transpose(1, 2)) * scale
        if count > 1:
            seen = torch.ones(count, num_tail, dtype=torch.bool, device=own.device).tril(num_tail - count)
            within = within.view(heads, -1, count, num_tail).masked_fill(~seen, float("-inf")).view_as(within)
        weights.append(torch.cat((logits, within), dim=-1).softmax(dim=-1))
    on_past = torch.cat([each[..., :num_past] for each in weights], dim=1)
    outs = _product(on_past.to(values.dtype), values).split(sizes, dim=1)
    told = []
    for part, each, out in zip(parts, weights, outs, strict=True):
        query_heads, count, dim = part.queries.shape
        out = out + _product(each[..., num_past:].to(values.dtype), part.tail[1])
        out = out.to(part.queries.dtype).reshape(query_heads, count, dim).transpose(0, 1)
        noted = each[..., : num_past + part.num_held].reshape(query_heads, count, -1)
        told.append((out, noted[:, -1]))
    return told


def note_looks(ledger: Tensor, weights: Tensor) -> None:
    """Add a query's weights `[Hq, rows]` to a ledger: `[rows]`, averaged over heads, or `[H, rows]`, whose sum over
    heads is that."""
    if ledger.ndim == 1:
        ledger.add_(weights.mean(0))
    else:
        ledger.add_(weights.unflatten(0, (len(ledger), -1)).sum(1) / len(weights))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix product with a float32 result: bf16 logits of size 20 would be off by 0.06."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
