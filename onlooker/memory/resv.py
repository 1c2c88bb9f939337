"""Park everything, and recall single rows: those whose clusters hold a share of the question's attention (V-Rex).

Song et al., "V-Rex: Real-Time Streaming Video LLM Acceleration via Dynamic KV Cache Retrieval", HPCA 2026 (arXiv
2512.12284), its algorithm ReSV. As there: the signs of a key's products with 32 random directions are its signature; a
row joins the nearest cluster of its layer and head whose signature differs in fewer than 7 bits, else it founds one; a
question goes through the clusters by falling score until a share of the total is reached, every word and head for
itself, and sees the rows of all clusters that were reached: every layer and head recalls as much as it needs. Changed:

- the sum is of attention, exp(score) times members, where the paper adds raw products: those may be negative. Its share
  (0.3) means another thing there;
- signatures and means are of keys before rotation: a cluster is about content, wherever its rows lie;
- a cluster keeps the signature of the row that founded it, so that it does not wander; of a block's rows that found
  clusters in long chains (each near the one before, eight deep) the last ones found their own;
- rows are chosen once for a question, by its whole prompt, not again at every word of the answer, and not while
  watching, which sees a window, as `rekv` does;
- the newest blocks are always part of the answer; rows are fetched with their whole block, if any head wants any of it.

The index stays on the device: a mean key and a signature for each cluster, a number for each row. Writing it waits for
the device once a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._clusters import BITS, Clusters
from onlooker.memory._recent import WindowState, count_new, oldest_beyond, prefix_length


@dataclass
class ReSVState(WindowState):
    """Counts of the window, and the clusters of all rows."""

    clusters: Clusters = field(default_factory=Clusters)


@dataclass(frozen=True)
class ReSV(MemoryPolicy):
    """Recall rows by clusters of keys, as many as the question's attention asks for."""

    realises: ClassVar[tuple[str, ...]] = ("v_rex",)
    scores_layers: ClassVar[bool] = True
    indexes: ClassVar[bool] = True
    contract_exceptions: ClassVar[dict[str, str]] = {"bounded_state": "every row that may be recalled is in the index"}

    share: float = 0.9
    """Share of a word's attention on the past, as clusters estimate it, at which a head stops; 1 is all of it."""
    recent: int = 4
    """Newest blocks that every layer sees besides."""
    differ: int = 7
    """Bits (of 32) by which a row's signature differs from those of all clusters when it founds its own."""
    window_tokens: int = 15000
    """Most tokens seen behind the prefix while watching; older blocks are parked."""

    def __post_init__(self) -> None:
        good = 0 < self.share <= 1 and self.recent >= 0 and 1 <= self.differ <= BITS and self.window_tokens >= 1
        if not good:
            raise InputError(
                "resv stops at a share in (0, 1], and its sizes are not negative",
                given=f"share={self.share}, recent={self.recent}, differ={self.differ}",
                do="for example resv:share=0.9,differ=7",
            )

    def new_state(self) -> ReSVState:
        """Nothing is indexed yet."""
        return ReSVState()

    def scoring(self) -> Scoring:
        """The queries themselves."""
        return "queries"

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Park what leaves the window."""
        assert isinstance(state, ReSVState)
        first = count_new(spans, state)
        return Plan(park=oldest_beyond(spans, first, state, self.window_tokens, None))

    def index(self, block: int, keys: Tensor, state: StreamState) -> None:
        """Put the rows of a block into clusters."""
        assert isinstance(state, ReSVState)
        state.clusters.add(block, keys, self.differ)

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """All blocks: which rows of them, `recall_rows` says."""
        return Recall(tuple(span.id for span in spans))

    def recall_rows(self, layer: int, spans: Sequence[Span], queries: Tensor, state: StreamState) -> Recall:
        """The rows of the clusters that hold the share, and all of the prefix and of the newest blocks."""
        assert isinstance(state, ReSVState)
        blocks, lead = tuple(span.id for span in spans), prefix_length(spans)
        if self.share >= 1 or len(spans) - lead <= self.recent:
            return Recall(blocks)
        rows = state.clusters.rows_of(blocks[lead], blocks[-1])
        seen = state.clusters.reached(layer, queries, rows, self.share)
        newest = sum(span.num_tokens for span in spans[len(spans) - self.recent :])
        seen[:, seen.shape[1] - newest :] = True
        always = seen.new_ones(len(seen), sum(span.num_tokens for span in spans[:lead]))
        return Recall(blocks, torch.cat([always, seen], dim=1))
