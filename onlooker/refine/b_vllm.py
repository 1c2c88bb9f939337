"""The question's words pick frames, words that pick alike count once, and the frames that are left share the budget.

Lu et al., "B-VLLM: A Vision Large Language Model with Balanced Spatio-Temporal Tokens", ICCV 2025 (arXiv 2412.09919).
As there: every query shares itself out among the frames; queries whose shares are alike, (cosine + 1) / 2 above 0.75,
are one; tokens of a frame are budget / frames kept, reached by bipartite merging; what fits the budget is left alone.
Changed, as nothing is trained:

- the queries are the question's own words, where the paper has sixteen learned ones: their attention in a layer a third
  of the way up (keys and values), or their products with the frames' mean tokens (memories that hold tokens);
- a query picks the frame with its largest share; the paper's code draws at random, so that the same question sees other
  frames each time;
- queries alike are found transitively, so that none is lost between two others;
- of keys and values the rows that the words look at most stay: rows are not merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import Look, Refiner
from onlooker.core.errors import InputError
from onlooker.core.unread import Unread
from onlooker.refine._budget import allowed, best_rows, check_budget, early
from onlooker.refine._frames import frames_among, means_of, shrunk, tokens_of


@dataclass(frozen=True)
class BVLLM(Refiner):
    """Balance how many frames are seen with how many tokens of each."""

    realises: ClassVar[tuple[str, ...]] = ("b_vllm",)
    takes: ClassVar[frozenset[str]] = frozenset({"rows", "tokens"})
    trims_all: ClassVar[bool] = True

    tokens: int | None = None
    """Tokens of video to keep (give this or ratio)."""
    ratio: float | None = None
    """Share of the tokens of video to keep, in (0, 1]; half when neither is given."""
    alike: float = 0.75
    """(cosine + 1) / 2 of two words' shares above which they are one query."""
    look: int = 10
    """The layer whose attention picks frames (from 0); a third of the way up in models that are less deep."""

    def __post_init__(self) -> None:
        check_budget(self.tokens, self.ratio)
        if not 0.5 <= self.alike <= 1 or self.look < 0:
            given = f"alike={self.alike}, look={self.look}"
            raise InputError("words are alike above 0.5 to 1, and layers count from 0", given=given, do="alike=0.75")

    def layer(self, num_layers: int) -> int:
        """As the setting says, in deep models."""
        return early(self.look, num_layers)

    def refine_rows(self, look: Look) -> Tensor:
        """Of the frames that were picked, the rows that any word looks at most, as many of each."""
        rows = int(look.vision.sum())
        budget = allowed(rows, self.tokens, self.ratio)
        if budget == rows:
            return torch.ones_like(look.vision)
        weights = look.weights().mean(0) * look.vision
        shares = weights.new_zeros(len(weights), look.num_blocks).index_add_(1, look.block, weights)
        seen = shares.new_zeros(look.num_blocks).index_add_(0, look.block, look.vision.float()) > 0
        frames = self._picked(shares / shares.sum(1, keepdim=True).clamp(min=1e-30), seen, budget)
        scores, kept = weights.amax(0), torch.zeros_like(look.vision)
        for frame in frames:
            kept |= best_rows(scores, look.vision & (look.block == frame), budget // len(frames))
        return kept

    def refine(self, recalled: Sequence[Unread], question: Tensor) -> Sequence[Unread]:
        """The frames that were picked, merged until they fit, and all notes."""
        frames = frames_among(recalled)
        counts = [len(tokens) for one in recalled if (tokens := tokens_of(one)) is not None]
        budget = allowed(sum(counts), self.tokens, self.ratio) if frames else 0
        if budget == sum(counts):
            return recalled
        means = means_of(recalled)
        shares = (question.float() @ means.T * means.shape[1] ** -0.5).softmax(-1)
        picked = self._picked(shares, torch.ones(len(frames), dtype=torch.bool, device=means.device), budget)
        chosen = {frames[number] for number in picked}
        left = []
        for place, one in enumerate(recalled):
            tokens = tokens_of(one)
            if tokens is None:
                left.append(one)
            elif place in chosen:
                left.append(replace(one, content=shrunk(tokens, budget // len(picked))))
        return left

    def _picked(self, shares: Tensor, seen: Tensor, budget: int) -> list[int]:
        """The frames that queries pick by their shares `[words, frames]`, among those `seen`; at most one for each
        token of the budget, the most wanted ones."""
        unit = F.normalize(shares, dim=-1)
        linked = ((unit @ unit.T + 1) / 2 > self.alike) | torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        for _ in range(len(unit).bit_length()):
            linked = (linked.float() @ linked.float()) > 0
        queries = linked.float() @ shares / linked.sum(1, keepdim=True)
        wanted, picks = queries.masked_fill(~seen, -1.0).max(-1)
        best = torch.zeros(shares.shape[1], device=shares.device).scatter_reduce(0, picks, wanted + 1e-9, "amax")
        order = best.sort(descending=True, stable=True).indices[:budget].tolist()
        return sorted(frame for frame in order if best[frame] > 0)
