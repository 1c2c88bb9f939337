"""Turning tokens and texts into blocks that the language model reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts import VideoModel
from onlooker.core.spans import Layout, SpanKind
from onlooker.core.tokens import VisualTokens
from onlooker.engine.packing import Work
from onlooker.kvstore import Chunk, Held, KVStore


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read of a patch: its time as text (if the model knows times), its visual tokens, and its end mark; or a
    note."""

    embeddings: Tensor
    """`[tokens, hidden_dim]`."""
    held: Held
    """Where and when: as a block that a question reads itself."""
    extras: Mapping[str, Tensor] | None = None
    """Rows that enter language layers beside some of the tokens, each `[tokens, ...]`."""
    kind: SpanKind = "vision"

    def begin(self, store: KVStore) -> tuple[Work, Chunk]:
        """The work of reading it into a store, and the chunk it opens there, which the caller seals after the pass or
        aborts. Raises `CapacityError` when the store has no room; nothing is changed then."""
        at = self.held
        chunk = store.begin(self.kind, at.start_s, at.end_s, at.positions, at.extent, at.clock)
        return Work(self.embeddings, chunk, self.extras), chunk


def reading_of(model: VideoModel, tokens: VisualTokens, start_s: float, end_s: float, layout: Layout) -> Reading:
    """What the model reads of tokens that were seen from one stream time to another."""
    before, after = model.frame_ids((start_s + end_s) / 2), model.frame_closing_ids()
    before_place, seen_from = model.place_text(len(before))
    place, reach = model.place_tokens(tokens, layout)
    after_place, after_reach = model.place_text(len(after))
    after_from = seen_from + reach
    positions = torch.cat([before_place, place + seen_from, after_place + after_from], dim=1)
    features = tokens.features.to(model.spec.dtype)
    embeddings = torch.cat([model.embed_text(before), features, model.embed_text(after)])
    extras = {
        name: torch.cat([_zeros(rows, len(before)), rows, _zeros(rows, len(after))])
        for name, rows in tokens.extras.items()
        if name in model.language_extras
    }
    held = Held(start_s, end_s, positions, after_from + after_reach, model.clock(start_s))
    return Reading(embeddings, held, extras or None)


def note_reading(model: VideoModel, ids: Sequence[int], time_s: float, kind: SpanKind) -> Reading:
    """What the model reads of a note, given as token ids."""
    return Reading(model.embed_text(ids), Held(time_s, time_s, *model.place_text(len(ids))), None, kind)


def _zeros(rows: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, *rows.shape[1:])
