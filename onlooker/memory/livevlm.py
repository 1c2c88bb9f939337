"""A bounded past of the rows that the newest look at, spread over time, found frame by frame (LiveVLM, version 2).

"LiveVLM", arXiv 2505.15269v2 (DAC 2026). As there: the newest frames are whole; of all older ones 12,000 rows stay in
every layer: those that the last queries look at most, by mean attention; first the top ones of all (vision sinks), then
by falling score those whose place in time is not taken (as many buckets as rows, one row each). A question reads a
share (0.4) of it, found by mean keys of pages without their positions. Training-free. Changed:

- the number of last queries, which is not told, and that of sinks are settings; logits go to rows of the past only;
  rows for which no bucket has room fill what empty buckets leave over;
- a page is what is left of a frame, found by its whole frame's mean key, and laid out at packed positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._looks import attention_on, by_buckets, in_groups
from onlooker.memory._recent import prefix_length


@dataclass
class Buckets(StreamState):
    """What the newest block looked at, and when what is left was."""

    replaces: ClassVar[bool] = True

    queries: Tensor | None = None
    """Of the newest block, `[layers, query_heads, tokens, head_dim]`."""
    places: Tensor | None = None
    """Which rows of the stream those were that are left, int32 `[layers, kv_heads, rows]`."""
    melted: int = 0  # rows of the stream that were melted so far
    last: int = -1  # the newest block that was melted


@dataclass(frozen=True)
class LiveVLM(MemoryPolicy):
    """Importance and time together, at a fixed number of rows."""

    realises: ClassVar[tuple[str, ...]] = ("livevlm",)
    scores_layers: ClassVar[bool] = True

    keep_tokens: int = 12000
    """Rows of the past that stay in every layer and head."""
    recent: int = 16
    """Newest blocks kept whole."""
    chunk: int = 8
    """Blocks that are melted together: the past may be so much larger meanwhile."""
    num_queries: int = 32  # pyright: ignore[reportIncompatibleVariableOverride] - a setting here
    """Last tokens of the newest block whose attention counts (r)."""
    sinks: float = 0.1
    """Share of the rows that stay wherever in time they are."""
    bucket: int = 1
    """Rows of a bucket; there are keep_tokens / bucket of them."""
    ratio: float = 0.4
    """Share of the past's frames that a question reads, rounded up."""
    pack: bool = False
    """Move what is left together each time, so that positions do not grow; costs its keys once more."""

    def __post_init__(self) -> None:
        sizes = self.keep_tokens, self.recent, self.chunk, self.num_queries, self.bucket
        if min(sizes) < 1 or self.bucket > self.keep_tokens or not (0 <= self.sinks <= 1 and 0 <= self.ratio <= 1):
            given = f"sizes {sizes}, sinks={self.sinks}, ratio={self.ratio}"
            raise InputError("sizes of at least 1, and shares between 0 and 1", given=given, do="livevlm:ratio=0.4")

    def new_state(self) -> Buckets:
        """Nothing seen."""
        return Buckets()

    def heed(self, block: int, queries: Tensor, state: StreamState) -> None:
        """Keep the newest block's queries."""
        assert isinstance(state, Buckets)
        state.queries = queries.clone()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Melt what is no longer new, a chunk at a time, once it is more than may stay."""
        assert isinstance(state, Buckets)
        old = spans[prefix_length(spans) : max(prefix_length(spans), len(spans) - self.recent)]
        fresh = sum(span.id > state.last for span in old)
        if fresh < self.chunk or sum(span.num_tokens for span in old) <= self.keep_tokens:
            return Plan()
        state.last = old[-1].id
        return Plan(melt=tuple(span.id for span in old), packs=self.pack)

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """Sinks, then the best of each bucket, then the best of the rest."""
        assert isinstance(state, Buckets) and state.queries is not None
        layers, heads, rows, _ = keys.shape
        known = keys.new_empty(layers, heads, 0, dtype=torch.int32) if state.places is None else state.places
        total = state.melted + rows - known.shape[2]
        new = torch.arange(state.melted, total, dtype=torch.int32, device=keys.device)
        places, state.melted = torch.cat([known, new.expand(layers, heads, -1)], dim=2), total
        count, buckets = min(self.keep_tokens, rows), max(1, self.keep_tokens // self.bucket)
        picked = []
        for layer in range(layers):  # one after the other: it takes a copy in float32
            looks = attention_on(keys[layer], in_groups(state.queries[layer], heads))
            bucket = places[layer].long() * buckets // state.melted
            picked.append(by_buckets(looks, bucket, count, self.bucket, round(self.sinks * count)))
        index = torch.stack(picked)
        state.places = places.gather(2, index)
        return index

    def scoring(self) -> Scoring:
        """Each block's largest share of the attention of a token and head of the whole prompt."""
        return "shares"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prompt, the best of the past, and the newest blocks, in time order."""
        assert scores is not None, "pages are found by score"
        end = max(lead := prefix_length(spans), len(spans) - self.recent)
        count = -int(-self.ratio * (end - lead) // 1)
        best = scores[lead:end].argsort(descending=True, stable=True)[:count].sort().values
        places = [*range(lead), *(lead + place for place in best.tolist()), *range(end, len(spans))]
        return Recall(tuple(spans[place].id for place in places))
