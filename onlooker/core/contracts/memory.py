"""What a memory policy fills in."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts.method import Method
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState


class MemoryPolicy(Method):
    """Decides about blocks of keys and values; the store carries the decision out. Never touches a key or value."""

    scores_layers: ClassVar[bool] = False
    """True when `recall` wants the question's score of every block, layer by layer (a first pass over the question)."""
    rereads: ClassVar[bool] = False
    """True when nothing is prefilled while watching; the recalled frames' tokens are read at the question."""

    @abstractmethod
    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """After a chunk was stored: what to park and what to forget. `spans` are all blocks, in stream order.

        Must not take time that grows with the number of blocks already parked.
        """

    def scoring(self) -> Scoring:
        """How blocks are scored, if `scores_layers`."""
        return "mean"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """What a question may see, in one layer if `scores_layers` (then `scores` is float32 `[spans]`), else in all.

        The default is everything on the device. Must not change `state`.
        """
        return Recall(tuple(span.id for span in spans if span.tier.value == "device"))

    def recall_rows(self, layer: int, spans: Sequence[Span], queries: Tensor, state: StreamState) -> Recall:
        """What a question may see in one layer, row by row, if `scoring` is `queries`: the layer's raw queries of the
        whole prompt, `[query_heads, tokens, head_dim]`, on the device. Must not change `state`."""
        raise NotImplementedError(f"{type(self).__name__} recalls whole blocks")
