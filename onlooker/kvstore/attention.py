"""The attention arithmetic: one causal piece, two pieces under one softmax, and many streams in one pass.

Legend: Hq query heads, H key-value heads, G = Hq / H, n queries, m keys, D head dimension.
Query heads that share a key-value head ride as extra query rows `[H, G * n, D]`, so keys are never repeated.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.kernels.packed_attention import Rows
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

    def rows(self) -> Rows | None:
        """Where its keys and values lie, for whoever attends to many segments at once, instead of `attend`.

        Taken once; the taker writes the new tokens' rows in every layer. None when it can only `attend`.
        """
        ...


class PackedAttention:
    """Attention of one model pass over the packed tokens of many segments (`core.contracts.Attention`).

    Every segment attends to its own stream only. This is the reference: one call per segment and layer.
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
        outputs = [
            segment.attend(layer, *own[:3], scale, turned=(own[3], own[4]) if is_known else None)
            for (segment, _), is_known, *own in zip(
                self._segments, self._known, *(part.split(counts, dim=1) for part in parts), strict=True
            )
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
