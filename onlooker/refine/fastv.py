"""From an early layer on, see only the rows that the end of the question attends to (FastV).

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764). As there: the attention of the
prompt's last token in layer K - 1, mean over heads, ranks the visual rows; the layers from K on see the best of them,
at the places they had. Changed:

- it works on what the memory recalled, at one question, never on the stream: a row that one question has no use for is
  there for the next (in the paper's code the cache is pruned for good);
- text (the prompt's prefix, notes) is never dropped, and neither is what belongs to no frame;
- a layer whose memory recalled other blocks (ReKV chooses in each layer) ranks its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import Look, Refiner
from onlooker.core.errors import InputError
from onlooker.refine._budget import allowed, best_rows, check_budget


@dataclass(frozen=True)
class FastV(Refiner):
    """Rank rows by the last token's attention in an early layer."""

    takes: ClassVar[frozenset[str]] = frozenset({"rows"})

    after: int = 2
    """Layers that see all rows (K); the attention of the last of them decides."""
    tokens: int | None = None
    """Rows of video to keep (give this or ratio)."""
    ratio: float | None = None
    """Share of the rows of video to keep, in (0, 1]; 0.5 when neither is given."""

    def __post_init__(self) -> None:
        check_budget(self.tokens, self.ratio)
        if self.after < 1:
            raise InputError("after is at least one layer", given=f"after={self.after}", do="for example fastv:after=2")

    def layer(self, num_layers: int) -> int:
        """The last layer that sees all."""
        return min(self.after, num_layers) - 1

    def refine_rows(self, look: Look) -> Tensor:
        """The best rows by the last word's attention, mean over heads."""
        scores = look.weights()[:, -1].mean(0)
        return best_rows(scores, look.vision, allowed(int(look.vision.sum()), self.tokens, self.ratio))
