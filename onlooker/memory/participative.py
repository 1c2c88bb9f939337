"""A deep beginning, the newest blocks, and between them the rows that the newest queries use (Deep Forcing).

"Deep Forcing", arXiv 2512.05081, its second rule, participative compression, for video that is generated: when the
window (21 latent frames) is full, of all rows between the sinks (10) and the newest frames (4) those stay that have the
largest sum of products with the queries of the newest frames, as many as fill the window. Here on the input side, by
frames that come in. Changed:

- a block is one frame (or note) of the stream, not a latent frame of four; of each new block the queries of its last
  tokens are kept, not of all;
- rows are chosen whenever a block leaves the newest, in every layer and head, not at the first step of denoising;
- rows keep the positions that they had unless `pack` is set: the paper moves the sinks and the chosen rows in time to
  lie right before the rest; here rows are moved together first, since positions would grow with the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState
from onlooker.memory._looks import in_groups, products_on
from onlooker.memory._recent import prefix_length


@dataclass
class Participants(StreamState):
    """The newest queries of one stream."""

    replaces: ClassVar[bool] = True

    queries: list[Tensor] = field(default_factory=list)
    """Of the newest blocks, `[layers, query_heads, tokens, head_dim]` each."""


@dataclass(frozen=True)
class Participative(MemoryPolicy):
    """Sinks, rows that are used, and the newest blocks."""

    realises: ClassVar[tuple[str, ...]] = ("deep_forcing",)

    sink_frames: int = 10
    """Blocks of the beginning that never leave."""
    recent: int = 4
    """Newest blocks, which are whole and whose queries choose."""
    top_tokens: int = 147
    """Rows kept between them, in every layer and head: seven frames' worth of 21."""
    num_queries: int = 21  # pyright: ignore[reportIncompatibleVariableOverride] - a setting here
    """Last tokens of a block whose queries count."""
    pack: bool = False
    """Move the chosen rows together each time, so that positions do not grow; costs their keys once more."""

    def __post_init__(self) -> None:
        if self.sink_frames < 0 or min(self.recent, self.top_tokens, self.num_queries) < 1:
            given = f"sink_frames={self.sink_frames}, recent={self.recent}, top_tokens={self.top_tokens}"
            do = "for example participative:sink_frames=10,recent=4,top_tokens=147"
            raise InputError("a window has new blocks and room between them and its sinks", given=given, do=do)

    def new_state(self) -> Participants:
        """Nothing seen."""
        return Participants()

    def heed(self, block: int, queries: Tensor, state: StreamState) -> None:
        """Keep the queries of the newest blocks."""
        assert isinstance(state, Participants)
        state.queries = [*state.queries, queries.clone()][-self.recent :]

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Melt what lies between when it has too many rows."""
        between = spans[prefix_length(spans) + self.sink_frames : max(0, len(spans) - self.recent)]
        if sum(span.num_tokens for span in between) <= self.top_tokens:
            return Plan()
        return Plan(melt=tuple(span.id for span in between), packs=self.pack)

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """The rows with the largest sum of products with the newest queries."""
        assert isinstance(state, Participants)
        newest, heads = torch.cat(state.queries, dim=2), keys.shape[1]
        count = min(self.top_tokens, keys.shape[2])
        used = [products_on(own, in_groups(asks, heads)) for own, asks in zip(keys, newest, strict=True)]
        return torch.stack(used).topk(count).indices.sort(-1).values
