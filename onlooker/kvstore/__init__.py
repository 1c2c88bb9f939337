"""The KV cache itself: immutable blocks of un-rotated keys with explicit positions, in tiers."""

from onlooker.kvstore.attention import PackedAttention, Segment
from onlooker.kvstore.chunk import Chunk
from onlooker.kvstore.question import QuestionView
from onlooker.kvstore.store import KVStore

__all__ = ["Chunk", "KVStore", "PackedAttention", "QuestionView", "Segment"]
