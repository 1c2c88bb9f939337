"""The KV cache itself: immutable blocks of keys and values with explicit positions, in tiers."""

from onlooker.kvstore.attention import PackedAttention, Segment
from onlooker.kvstore.catalog import Catalog, Spans
from onlooker.kvstore.chunk import Chunk
from onlooker.kvstore.question import Held, QuestionView
from onlooker.kvstore.store import KVStore
from onlooker.kvstore.tiers import store_settings, tier_codecs
from onlooker.kvstore.together import Foreseen, Together, may_read_together

__all__ = [
    "Catalog",
    "Chunk",
    "Foreseen",
    "Held",
    "KVStore",
    "PackedAttention",
    "QuestionView",
    "Segment",
    "Spans",
    "Together",
    "may_read_together",
    "store_settings",
    "tier_codecs",
]
