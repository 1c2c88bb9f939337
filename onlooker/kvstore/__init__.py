"""The KV cache itself: immutable blocks of un-rotated keys with explicit positions, in tiers."""

from onlooker.kvstore.attention import PackedAttention, Segment
from onlooker.kvstore.chunk import Chunk
from onlooker.kvstore.question import Held, QuestionView
from onlooker.kvstore.store import KVStore

__all__ = ["Chunk", "Held", "KVStore", "PackedAttention", "QuestionView", "Segment"]
