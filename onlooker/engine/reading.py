"""Turning a frame's tokens into a block that the language model reads."""

import torch

from onlooker.core.contracts import VideoModel
from onlooker.core.spans import Layout
from onlooker.core.tokens import VisualTokens
from onlooker.engine.packing import Work
from onlooker.kvstore import Chunk, KVStore


def read_frames(
    model: VideoModel, store: KVStore, tokens: VisualTokens, time_s: float, layout: Layout
) -> tuple[Work, Chunk]:
    """The work of reading one frame: its time as text (if the model knows times), its visual tokens, and its end mark.

    Opens a chunk in the store, which the caller seals after the pass or aborts. Raises `CapacityError` when the store
    has no room; nothing is changed then.
    """
    before, after = model.frame_ids(time_s), model.frame_closing_ids()
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
    chunk = store.begin("vision", time_s, time_s, positions, after_from + after_reach)
    return Work(embeddings, chunk, extras or None), chunk


def _zeros(rows: torch.Tensor, count: int) -> torch.Tensor:
    return rows.new_zeros(count, *rows.shape[1:])
