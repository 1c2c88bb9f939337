"""`livevlm`, but pages are found with their positions: keys are turned to where they lie and the question's words to
where they are read, as in attention. The control of "pages found with positions stripped"."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.spans import Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.kvstore.rotation import rotate
from onlooker.kvstore.signals import share_attention
from onlooker.memory._recent import prefix_length
from onlooker.memory.livevlm import Buckets, LiveVLM


@dataclass
class Placed(Buckets):
    """Of each block the mean of its keys, each turned to its place in the block."""

    means: dict[int, Tensor] = field(default_factory=dict)
    """float32 `[layers, kv_heads, head_dim]`, by block."""


@dataclass(frozen=True)
class PlacedPages(LiveVLM):
    """The same past, searched by what attention would say."""

    indexes: ClassVar[bool] = True
    contract_exceptions: ClassVar[dict[str, str]] = {"bounded_state": "a control, for streams of an hour at most"}

    theta: float = 100000.0
    """Base of the model's positions (the pocket models': 100000)."""
    placed: bool = True
    """False: searched without positions, as `livevlm` does, but for the prompt, which is not searched here."""

    def new_state(self) -> Placed:
        """Nothing seen."""
        return Placed()

    def index(self, block: int, keys: Tensor, state: StreamState) -> None:
        """Turn the keys of a block to their places in it, and keep their mean."""
        assert isinstance(state, Placed)
        turned = rotate(keys.float(), *self._angles(torch.arange(keys.shape[2]), keys))
        state.means = {**state.means, block: turned.mean(2)}

    def scoring(self) -> Scoring:
        """It is given the queries and does the rest itself."""
        return "queries"

    def recall_rows(self, layer: int, spans: Sequence[Span], queries: Tensor, state: StreamState) -> Recall:
        """As `shares` would score blocks, between what lies where it lies."""
        assert isinstance(state, Placed)
        ends = torch.tensor([span.num_tokens for span in spans]).cumsum(0)
        lead, starts = prefix_length(spans), ends - torch.tensor([span.num_tokens for span in spans])
        means = torch.stack([state.means[span.id][layer] for span in spans[lead:]], dim=1)  # [kv_heads, blocks, dim]
        means = rotate(means, *self._angles(starts[lead:], means))
        asked = rotate(queries.float(), *self._angles(ends[-1] + torch.arange(queries.shape[1]), queries))
        found = share_attention(means.transpose(0, 1).flatten(1), asked, len(means), queries.shape[-1] ** -0.5).cpu()
        return self.recall(spans, torch.cat([torch.zeros(lead), found]), state)

    def _angles(self, places: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        dim = like.shape[-1]
        rates = self.theta ** (-torch.arange(0, dim, 2).float() / dim)
        angles = (places.float()[:, None] * rates * self.placed).repeat(1, 2).to(like.device)
        return angles.cos(), angles.sin()
