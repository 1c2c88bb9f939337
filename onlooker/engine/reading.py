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
    """The work of reading one frame: its time as text (if the model knows times), then its visual tokens.

    Opens a chunk in the store, which the caller seals after the pass or aborts. Raises `CapacityError` when the store
    has no room; nothing is changed then.
    """
    ids = model.frame_ids(time_s)
    text_place, text_reach = model.place_text(len(ids))
    place, reach = model.place_tokens(tokens, layout)
    positions = torch.cat([text_place, place + text_reach], dim=1)
    chunk = store.begin("vision", time_s, time_s, positions, text_reach + reach)
    embeddings = torch.cat([model.embed_text(ids), tokens.features.to(model.spec.dtype)])
    extras = {
        name: torch.cat([rows.new_zeros(len(ids), *rows.shape[1:]), rows])
        for name, rows in tokens.extras.items()
        if name in model.language_extras
    }
    return Work(embeddings, chunk, extras or None), chunk
