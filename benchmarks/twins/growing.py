"""`streaming_vlm`, but positions grow with the stream: what left the window leaves its places behind, and the beginning
stays where it was written, ever further from the rest. The control of "contiguous positions"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState
from onlooker.memory.streaming_vlm import StreamingVLM


@dataclass(frozen=True)
class Growing(StreamingVLM):
    """The same window; one token more is left of what is gone, for a run of blocks cannot be empty."""

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Melt what has left the window, places and all."""
        gone = super().plan(spans, state).forget
        if any(span.kind != "vision" for span in spans[1:]):
            raise ValueError("this control is for streams without notes")
        # What is left of the last melting is old too: alone it is no reason for another.
        return Plan(melt=gone) if len(gone) > 1 else Plan()

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """The last row."""
        layers, heads, rows, _ = keys.shape
        return torch.full((layers, heads, 1), rows - 1, dtype=torch.int64, device=keys.device)
