"""What a refiner fills in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.contracts.memory import MemoryPolicy
from onlooker.core.contracts.method import Method
from onlooker.core.errors import ModelError
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread


@dataclass(frozen=True, eq=False)
class Look:
    """Where the words of a question look in one layer, while the layer reads them."""

    layer: int
    num_layers: int
    queries: Tensor
    """Of the question's words, rotated, `[query_heads, words, head_dim]`."""
    keys: Tensor
    """Of all that was recalled, rotated, `[kv_heads, rows, head_dim]`."""
    own_keys: Tensor
    """Of the words themselves, rotated, `[kv_heads, words, head_dim]`."""
    scale: float
    block: Tensor
    """Of each row the place of its block (a frame, a note), int64 `[rows]`, ascending."""
    vision: Tensor
    """Which rows belong to frames, bool `[rows]`; all others are kept whatever the refiner says."""

    @property
    def num_blocks(self) -> int:
        """How many blocks were recalled."""
        return int(self.block[-1]) + 1 if len(self.block) else 0

    def weights(self) -> Tensor:
        """The attention of every word on every row, float32 `[query_heads, words, rows]`: rows and the words so far
        share one softmax."""
        heads, words, dim = len(self.keys), self.queries.shape[1], self.queries.shape[2]
        folded = self.queries.float().reshape(heads, -1, dim)
        seen = torch.cat([self.keys, self.own_keys], dim=1).float()
        logits = (folded @ seen.transpose(1, 2) * self.scale).view(len(self.queries), words, -1)
        unseen = torch.ones(words, logits.shape[2], dtype=torch.bool, device=logits.device)
        unseen = unseen.triu(logits.shape[2] - words + 1)
        return logits.masked_fill(unseen, float("-inf")).softmax(-1)[:, :, : self.keys.shape[1]]


class Refiner(Method):
    """Refines what the memory recalled, by the words of one question. Never touches the stream: another question finds
    all of it again.

    It fills in `refine` for memories that hold tokens (then fewer tokens are read), `layer` and `refine_rows` for keys
    and values (fewer are seen from some layer on), or both, and says so in `takes`.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    """What it refines: `tokens`, `rows`, or both."""
    trims_all: ClassVar[bool] = False
    """Whether the answer's tokens see refined rows in the layers up to the look as well."""

    def new_state(self) -> StreamState:
        """Nothing: what is refined is forgotten with the question."""
        return StreamState()

    def check_memory(self, memory: MemoryPolicy) -> None:
        """Raise `ModelError` when this refiner has nothing to refine of what that memory recalls."""
        if not self.takes or memory.holds_tokens:
            return
        name = type(memory).__name__
        if "rows" not in self.takes:
            raise ModelError(
                f"{type(self).__name__} refines tokens, and {name} keeps keys and values",
                given=f"memory {name}",
                do="use a memory that holds tokens, such as last_frames, or a refiner of rows, such as fastv",
            )
        if memory.scores_layers and memory.scoring() == "queries":
            raise ModelError(
                f"{name} chooses single rows itself, and {type(self).__name__} would choose among them again",
                given=f"memory {name}",
                do="use refiner=none, or another memory",
            )

    def refine(self, recalled: Sequence[Unread], question: Tensor) -> Sequence[Unread]:
        """What is read of blocks that a memory of tokens recalled (in the order of their times),
        in the same order; `question` is the bare question, `[tokens, hidden_dim]`. Notes pass unchanged."""
        return recalled

    def layer(self, num_layers: int) -> int | None:
        """The layer (from 0) whose attention decides which rows all later ones see; None: rows are left alone. A later
        layer that recalled other blocks decides for itself."""
        return None

    def refine_rows(self, look: Look) -> Tensor:
        """Which rows stay, bool `[rows]`, or `[kv_heads, rows]` where heads differ."""
        return torch.ones_like(look.vision)
