"""The tokens of a question inside a pass: on its first pass, which chooses, and afterwards."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.kernels.coded_rows import in_kernels
from onlooker.kernels.packed_attention import SegmentRows
from onlooker.kvstore.attention import OnPast, Turned, attend_context_and_tail, note_looks
from onlooker.kvstore.blocks import Offset
from onlooker.kvstore.context import Context
from onlooker.kvstore.rotation import moved, rotate

if TYPE_CHECKING:
    from onlooker.kvstore.question import QuestionView


class Retrieval:
    """The question on its first pass (a `Segment`)."""

    causal = True

    def __init__(self, view: "QuestionView", positions: Tensor) -> None:
        self._view, self._positions = view, positions

    def places(self) -> None:
        """None: each layer's context may be of another size."""

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, turned: Turned = None
    ) -> Tensor:
        """Choose this layer's context, then attend to it and to the question itself (see `Segment.attend`)."""
        assert turned is None, "places were not known"
        chosen = self._view._contexts
        # A pass that is repeated, because somebody else's part of it failed, asks what it asked before.
        context = chosen[layer] if layer < len(chosen) else self._view._choose_layer(layer, queries, scale)
        # Layers may see different numbers of positions, so the angles are made per layer.
        cos, sin = self._view._sources.rotary(moved(self._positions, context.reach))
        own, past = (rotate(keys, cos, sin), values), context.past()
        counts = None if context.counts is None else context.counts[0]
        return attend_context_and_tail(rotate(queries, cos, sin), past, own, scale, counts=counts)[0]

    def shared(self, layer: int) -> None:
        """None: what it sees is its own."""

    def rows(self) -> None:
        """None: what a layer sees is chosen from its own queries, in the middle of the pass."""


class TailSegment:
    """Tokens of a question or an answer, or of a block that was held (a `Segment`)."""

    causal = True

    def __init__(
        self,
        view: "QuestionView",
        positions: Tensor,
        held: range,
        reach: int,
        start: int,
        cited: bool,
        own: bool = False,
    ) -> None:
        self._view, self._cited, self._own = view, cited, own
        """`own`: its positions are counted from zero, not from the end of what is before it."""
        self._positions, self._held, self._reach = positions, held, reach
        """`held`: which of the blocks that were held these are; none of a question's own words."""
        self._start, self._end = start, start + positions.shape[1]
        self._angles: dict[tuple[Offset, ...], tuple[Tensor, Tensor]] = {}

    def _offsets(self, context: Context) -> tuple[Offset, ...]:
        """Where its blocks start behind a context; none when held blocks start elsewhere in each layer."""
        if self._own:
            return ((self._reach,) * len(context.reach),)
        if not self._held:
            return (tuple(place + self._reach for place in context.reach),)
        return context.held[self._held.start : self._held.stop]

    def _placed(self, offsets: tuple[Offset, ...]) -> Tensor:
        """Positions of its tokens, int64 `[axes, tokens]`, when its blocks start there."""
        if len(offsets) == 1:
            return moved(self._positions, offsets[0])
        counts = [self._view.held_spans[n].num_tokens for n in self._held]
        parts = self._positions.split(counts, dim=1)
        return torch.cat([moved(part, offset) for part, offset in zip(parts, offsets, strict=True)], dim=1)

    def places(self) -> Tensor | None:
        """Behind the context, if it is of one size (see `Segment.places`)."""
        whole = self._view._whole
        offsets = () if whole is None else self._offsets(whole)
        return self._placed(offsets) if offsets else None

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, turned: Turned = None
    ) -> Tensor:
        """Join the view's tail and attend to the context and the tail so far (see `Segment.attend`)."""
        self._view._check_open()
        context, past = self._view._contexts[layer], _Past(self, layer)
        own = past.begin(queries, keys, values, turned)
        counts = None if context.counts is None else context.counts[0]
        seen = past.keys, past.values
        output, weights = attend_context_and_tail(own.queries, seen, own.tail, scale, own.num_held, counts)
        past.end(weights)
        return output

    def shared(self, layer: int) -> "_Past | None":
        """The context, where it lies in the stream's own rows and is seen whole (see `Segment.shared`)."""
        self._view._check_open()
        context = self._view._contexts[layer]
        alone = context.owned_bytes or context.counts is not None or context.coded is not None
        return None if alone else _Past(self, layer)

    def look(self, layer: int, weights: Tensor) -> None:
        """Note where the last token looked, if somebody wants to know."""
        if self._cited:
            view = self._view
            note_looks(view._ledgers[0][layer] if view._whole else view._ledgers[layer][0], weights)

    @property
    def num_noted(self) -> int:
        """Own rows of which is noted how they are looked at."""
        return self._view._held_tokens if self._cited else 0

    def turn(self, layer: int, queries: Tensor, keys: Tensor, turned: Turned) -> tuple[Tensor, Tensor]:
        """Queries and keys, rotated to where they are, unless somebody has."""
        if turned is not None:
            return turned
        angles = self._turns(self._view._contexts[layer])
        return rotate(queries, *angles), rotate(keys, *angles)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Join the view's tail; rotated keys and values of all of it so far."""
        tail_keys, tail_values = self._view._tail[0, layer], self._view._tail[1, layer]
        tail_keys[:, self._start : self._end], tail_values[:, self._start : self._end] = keys, values
        return tail_keys[:, : self._end], tail_values[:, : self._end]

    def rows(self) -> SegmentRows | None:
        """The context as the past and the tail as its own rows; None where contexts differ in size."""
        view, whole = self._view, self._view._whole
        view._check_open()
        offsets = () if whole is None else self._offsets(whole)
        if whole is None or not offsets or not in_kernels(whole.coded, whole.keys.device):
            return None
        one = len(offsets) == 1
        return SegmentRows(
            past_keys=whole.keys,
            past_values=whole.values,
            own_keys=view._tail[0],
            own_values=view._tail[1],
            own_raw=None,
            own_before=self._start,
            positions=self._positions if one else self._placed(offsets),
            offset=offsets[0] if one else 0,
            past_counts=whole.counts,
            ledger=view._ledgers[0] if self._cited else None,
            own_noted=view._held_tokens if self._cited else 0,
            coded=whole.coded,
        )

    def _turns(self, context: Context) -> tuple[Tensor, Tensor]:
        """Cosines and sines behind a context: few are different, so each is made once."""
        offsets = self._offsets(context)
        assert offsets, "a layer has places for what was held"
        if offsets not in self._angles:
            self._angles[offsets] = self._view._sources.rotary(self._placed(offsets))
        return self._angles[offsets]


class _Past:
    """A segment of a question before its context in one layer (a `SharedPast`)."""

    def __init__(self, segment: TailSegment, layer: int) -> None:
        context = segment._view._contexts[layer]
        self._segment, self._layer = segment, layer
        self.keys, self.values = context.past()

    def begin(self, queries: Tensor, keys: Tensor, values: Tensor, turned: Turned) -> OnPast:
        """Join the view's tail (see `SharedPast.begin`)."""
        queries, keys = self._segment.turn(self._layer, queries, keys, turned)
        return OnPast(queries, self._segment.write(self._layer, keys, values), self._segment.num_noted)

    def end(self, weights: Tensor) -> None:
        """Note where the last token looked (see `SharedPast.end`)."""
        self._segment.look(self._layer, weights)
