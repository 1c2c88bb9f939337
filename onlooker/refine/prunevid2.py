"""See only the rows that some word of the question attends to in some head of a middle layer (PruneVid, second stage).

Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", ACL 2025 Findings (arXiv
2412.16117). As there: in layer 10 a visual row gets the largest attention that any head of any of the question's tokens
pays it; 40 percent of the rows stay, for the later layers and, while the answer is written, for the earlier ones too.
Changed:

- it works on what the memory recalled, at one question, never on the stream;
- static and dynamic rows are not ranked apart: merging static ones is the paper's first stage, a compressor's work;
- models with fewer than 30 layers decide a third of the way up;
- a layer whose memory recalled other blocks ranks its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import Look, Refiner
from onlooker.core.errors import InputError
from onlooker.refine._budget import allowed, best_rows, check_budget, early


@dataclass(frozen=True)
class PruneVid2(Refiner):
    """Rank rows by their largest attention from any word and head."""

    takes: ClassVar[frozenset[str]] = frozenset({"rows"})
    trims_all: ClassVar[bool] = True

    look: int = 10
    """The layer that decides (from 0); a third of the way up where the model has fewer than three times as many."""
    tokens: int | None = None
    """Rows of video to keep (give this or ratio)."""
    ratio: float | None = None
    """Share of the rows of video to keep, in (0, 1]; 0.4 when neither is given."""

    def __post_init__(self) -> None:
        check_budget(self.tokens, self.ratio)
        if self.look < 0:
            raise InputError("a layer is counted from 0", given=f"look={self.look}", do="for example prunevid2:look=10")

    def layer(self, num_layers: int) -> int:
        """As the setting says, in deep models."""
        return early(self.look, num_layers)

    def refine_rows(self, look: Look) -> Tensor:
        """The best rows by the largest attention of any word in any head."""
        ratio = 0.4 if self.tokens is None and self.ratio is None else self.ratio
        scores = look.weights().amax(dim=(0, 1))
        return best_rows(scores, look.vision, allowed(int(look.vision.sum()), self.tokens, ratio))
