"""The words of a question while what they look at is refined: from some layer on they see fewer rows, and so does the
answer."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.contracts import Look
from onlooker.kvstore.attention import Turned, attend_context_and_tail
from onlooker.kvstore.context import Context
from onlooker.kvstore.rows import owners_of, pick_rows
from onlooker.kvstore.segments import TailSegment

if TYPE_CHECKING:
    from onlooker.kvstore.question import QuestionView

Pick = Callable[[Look], Tensor]
"""Which rows stay, bool `[rows]` or `[kv_heads, rows]`."""


class RefiningSegment:
    """A question's words (a `Segment`) that refine what is before them: recalled rows and blocks that were held.

    Layers up to `layer` see all of it. There `pick` is told where the words look, and later layers see what it leaves;
    a later layer that recalled other blocks is looked at itself. Afterwards (`settle`) the view holds the refined rows,
    which packed passes can take: only the words themselves go through a plain pass, as it chooses in its middle.
    """

    causal = True

    def __init__(self, view: "QuestionView", words: TailSegment, layer: int, pick: Pick, trims_all: bool) -> None:
        self._view, self._words, self._layer, self._pick, self._trims_all = view, words, layer, pick, trims_all
        self._left: dict[tuple[int, ...], Tensor] = {}
        """Of blocks that were looked at, the rows that stay."""
        self._weights: dict[int, Tensor] = {}
        """Where the last word looked in each layer, float32 `[rows]`, or `[kv_heads, rows]`."""
        self._seen: dict[int, Context] = {}
        """What each layer saw."""

    def places(self) -> Tensor | None:
        """As of the words (see `Segment.places`)."""
        return self._words.places()

    def shared(self, layer: int) -> None:
        """None: it is read by itself."""

    def rows(self) -> None:
        """None: what later layers see is chosen in the middle of the pass."""

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, turned: Turned = None
    ) -> Tensor:
        """See `Segment.attend`."""
        view, words = self._view, self._words
        queries, keys = words.turn(layer, queries, keys, turned)
        tail_keys, tail_values = words.write(layer, keys, values)
        context = self._whole(layer)
        sizes = self._sizes(context)
        own = view._held_tokens
        if layer == 0:
            self._left.clear()  # a pass that is repeated decides anew
        if layer >= self._layer and context.blocks not in self._left:
            look = self._look(layer, context, queries, tail_keys[:, own:], scale, sizes)
            self._left[context.blocks] = self._pick(look) | ~look.vision
        if layer > self._layer:
            context = self._refined(context, sizes)
        counts = None if context.counts is None else context.counts[0]
        past, tail = (context.keys[0], context.values[0]), (tail_keys[:, own:], tail_values[:, own:])
        output, weights = attend_context_and_tail(queries, past, tail, scale, counts=counts)
        apart = context.owners is not None and context.owners.shape[1] > 1
        heads = weights.unflatten(0, (len(keys), -1)).sum(1) / len(weights)
        self._weights[layer], self._seen[layer] = heads if apart else heads.sum(0), context
        return output

    @property
    def done(self) -> bool:
        """Whether all layers have read the words."""
        return len(self._seen) == self._view.spec.num_layers

    def settle(self) -> tuple[list[Context], list[Context], list[Tensor]]:
        """What every layer sees from now on, and what it saw of these words, with the last one's looks."""
        layers = range(len(self._view._contexts))
        contexts = []
        for layer in layers:
            context = self._seen[layer]
            if layer <= self._layer and self._trims_all:
                context = self._refined(context, self._sizes(context))
            contexts.append(context)
        nothing = torch.empty(0)
        bare = [dataclasses.replace(self._seen[layer], keys=nothing, values=nothing) for layer in layers]
        return contexts, bare, [self._weights[layer] for layer in layers]

    def _whole(self, layer: int) -> Context:
        """All that the layer may see before the words: its context, and behind it what was held."""
        view = self._view
        context, own = view._contexts[layer], view._held_tokens
        rows = sum(self._sizes(context))
        held = tuple(span.id for span in view.held_spans) if own else ()
        parts = []
        for number, part in enumerate((context.keys, context.values)):
            part = part[:, :, :rows]  # behind lies what only fills up
            parts.append(torch.cat([part, view._tail[number, layer : layer + 1, :, :own]], dim=2) if own else part)
        blocks = context.blocks + held
        return dataclasses.replace(context, keys=parts[0], values=parts[1], blocks=blocks, counts=None)

    def _refined(self, context: Context, sizes: list[int]) -> Context:
        """What stays of a layer's context; all of it where nobody has looked at these blocks."""
        left = self._left.get(context.blocks)
        if left is None or context.owners is not None:
            return context
        return pick_rows(context, left[None] if left.ndim == 2 else left[None, None], sizes)

    def _sizes(self, context: Context) -> list[int]:
        return [self._view._sources.entries[block].span.num_tokens for block in context.blocks]

    def _look(
        self, layer: int, context: Context, queries: Tensor, own_keys: Tensor, scale: float, sizes: list[int]
    ) -> Look:
        kinds = [self._view._sources.entries[block].span.kind == "vision" for block in context.blocks]
        block = owners_of(sizes, queries.device)
        vision = torch.tensor(kinds, dtype=torch.bool, device=queries.device)[block]
        num_layers = self._view.spec.num_layers
        return Look(layer, num_layers, queries, context.keys[0], own_keys, scale, block, vision)
