"""`participative`, but the rows that stay are drawn at random: the control of "tokens that recent queries use"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.state import StreamState
from onlooker.memory.participative import Participants, Participative


@dataclass
class Drawn(Participants):
    """How often it was drawn."""

    draws: int = 0


@dataclass(frozen=True)
class RandomRows(Participative):
    """As many rows of each layer and head, whatever looks at them."""

    def new_state(self) -> Drawn:
        """Nothing drawn."""
        return Drawn()

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """Rows drawn anew, the same in every run."""
        assert isinstance(state, Drawn)
        chance = torch.Generator().manual_seed(state.draws)
        state.draws += 1
        drawn = torch.rand(keys.shape[:3], generator=chance).topk(min(self.top_tokens, keys.shape[2]))
        return drawn.indices.sort(-1).values.to(keys.device)
