"""Turning tokens and texts into blocks that the language model reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts import VideoModel
from onlooker.core.spans import Layout, SpanKind
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.engine.packing import Work
from onlooker.kvstore import Chunk, Held, KVStore, QuestionView

MOST_READ = 1024
"""Tokens of held blocks that a question reads in one pass, if they are more than one block."""


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

    def begin(self, store: KVStore) -> tuple[Work, Chunk]:
        """The work of reading it into a store, and the chunk it opens there, which the caller seals after the pass or
        aborts. Raises `CapacityError` when the store has no room; nothing is changed then."""
        at = self.held
        chunk = store.begin(at.kind, at.start_s, at.end_s, at.positions, at.extent, at.clock)
        return Work(self.embeddings, chunk, self.extras), chunk


def reading_of(
    model: VideoModel,
    tokens: VisualTokens,
    start_s: float,
    end_s: float,
    layout: Layout,
    place_s: float | None = None,
) -> Reading:
    """What the model reads of tokens that were seen from one stream time to another, or that stand for another time."""
    told_s = (start_s + end_s) / 2 if place_s is None else place_s
    before, after = model.frame_ids(told_s), model.frame_closing_ids()
    positions, reach = model.place_tokens(tokens, layout)
    embeddings = tokens.features.to(model.spec.dtype)
    extras = {name: rows for name, rows in tokens.extras.items() if name in model.language_extras}
    if before or after:  # without text there is nothing to put together, for each of many streams
        before_place, seen_from = model.place_text(len(before))
        after_place, after_reach = model.place_text(len(after))
        after_from = seen_from + reach
        positions = torch.cat([before_place, positions + seen_from, after_place + after_from], dim=1)
        embeddings = torch.cat([model.embed_text(before), embeddings, model.embed_text(after)])
        extras = {
            name: torch.cat([_zeros(rows, len(before)), rows, _zeros(rows, len(after))])
            for name, rows in extras.items()
        }
        reach = after_from + after_reach
    clock = model.clock(start_s if place_s is None else place_s)
    return Reading(embeddings, Held(start_s, end_s, positions, reach, clock), extras or None)


def note_reading(model: VideoModel, content: Sequence[int] | Tensor, time_s: float, kind: SpanKind) -> Reading:
    """What the model reads of a note, given as token ids, or of a soft prefix, given as rows `[tokens, hidden_dim]`."""
    place, reach = model.place_text(len(content))
    if isinstance(content, Tensor):
        rows = content if content.is_floating_point() else model.embed_text(content.tolist())
    else:
        rows = model.embed_text(content)
    return Reading(rows, Held(time_s, time_s, place, reach, kind=kind))


def unread_reading(model: VideoModel, unread: Unread, layout: Layout) -> Reading:
    """What the model reads of a block that a memory held."""
    if isinstance(unread.content, VisualTokens):
        return reading_of(model, unread.content, unread.start_s, unread.end_s, layout, unread.place_s)
    return note_reading(model, unread.content, unread.end_s, unread.kind)


def held_works(view: QuestionView, readings: Sequence[Reading]) -> Iterator[Work]:
    """The passes in which a question reads what was held, before its own words: several blocks in each."""
    start = 0
    while start < len(readings):
        end, count = start + 1, len(readings[start].embeddings)
        while end < len(readings) and count + len(readings[end].embeddings) <= MOST_READ:
            count += len(readings[end].embeddings)
            end += 1
        embeddings, extras = joined(readings[start:end])
        yield Work(embeddings, view.held_segment(end - start), extras)
        start = end


def joined(readings: Sequence[Reading]) -> tuple[Tensor, dict[str, Tensor] | None]:
    """The rows of several readings, and those beside them, as of one."""
    names = {name: rows for one in readings for name, rows in (one.extras or {}).items()}
    extras = {
        name: torch.cat([(one.extras or {}).get(name, _zeros(like, len(one.embeddings))) for one in readings])
        for name, like in names.items()
    }
    return torch.cat([one.embeddings for one in readings]), extras or None


def _zeros(rows: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, *rows.shape[1:])
