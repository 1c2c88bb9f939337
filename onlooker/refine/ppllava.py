"""Pool neighbouring tokens of neighbouring frames, weighted by how well they fit the question (PPLLaVA).

Liu et al., "PPLLaVA: Varied Video Sequence Understanding With Prompt Guidance" (arXiv 2411.02327). As there: tokens in
windows of frames, rows and columns become one by a mean whose weights follow the match of each with the question.
`kernel=published` is its rule: the matches of all tokens share one softmax, and within a window the shares do again, at
temperature 0.01. A share has to be a hundredth of everything before that says anything, so that it is the plain mean
nearly everywhere; `kernel=fixed` takes the softmax of the matches within the window, which is what was meant;
`kernel=mean` is the plain mean. Changed:

- no CLIP: a token's match is the cosine of it and of the question's mean word, both as the language model takes them;
- windows hold what the compressor left of them; the pooled token stands at the place of the first of them;
- for memories that hold tokens, at the question only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from onlooker.core.contracts import Refiner
from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens, join
from onlooker.core.unread import Unread
from onlooker.refine._frames import cosines, numbered, tokens_of

TEMPERATURE = 0.01


@dataclass(frozen=True)
class PPLLaVA(Refiner):
    """Pool windows of tokens by the question's words."""

    realises: ClassVar[tuple[str, ...]] = ("ppllava",)
    takes: ClassVar[frozenset[str]] = frozenset({"tokens"})

    kernel: Literal["fixed", "published", "mean"] = "fixed"
    """How tokens of a window are weighted."""
    frames: int = 2
    """Neighbouring frames of a window."""
    side: int = 2
    """Rows and columns of a window."""
    scale: float = 100.0
    """By how much a cosine is multiplied before the softmax (CLIP's)."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.side < 1 or self.scale <= 0:
            given = f"frames={self.frames}, side={self.side}, scale={self.scale}"
            raise InputError("a window has frames, rows and columns", given=given, do="for example frames=2,side=2")
        if self.kernel not in ("fixed", "published", "mean"):
            raise InputError("there is no such kernel", given=f"kernel={self.kernel}", do="fixed, published or mean")

    def refine(self, recalled: Sequence[Unread], question: Tensor) -> Sequence[Unread]:
        """Runs of so many frames as one block each; notes, and frames of another size, end a run."""
        runs: list[list[Unread]] = []
        for one in recalled:
            tokens = tokens_of(one)
            before = tokens_of(runs[-1][-1]) if runs else None
            fits = tokens is not None and before is not None and before.grid == tokens.grid
            if fits and len(runs[-1]) < self.frames:
                runs[-1].append(one)
            else:
                runs.append([one])
        every = [tokens for one in recalled if (tokens := tokens_of(one)) is not None]
        if not every or self.frames * self.side**2 == 1:
            return recalled
        word = question.float().mean(0, keepdim=True)
        match = cosines(torch.cat([tokens.features for tokens in every]), word)[:, 0] * self.scale
        whole, used, left = match.logsumexp(0), 0, []
        for run in runs:
            parts = [tokens for one in run if (tokens := tokens_of(one)) is not None]
            if not parts:
                left += run
                continue
            tokens = join(parts)
            own = match[used : used + len(tokens)]
            used += len(tokens)
            left.append(self._pooled(run, tokens, (own - whole).exp() / TEMPERATURE, own))
        return left

    def _pooled(self, run: Sequence[Unread], tokens: VisualTokens, published: Tensor, fixed: Tensor) -> Unread:
        """One block of a run of frames."""
        wide = -(-tokens.grid[1] // self.side)
        group = numbered(tokens.row // self.side * wide + tokens.col // self.side)
        logits = {"published": published, "fixed": fixed, "mean": torch.zeros_like(fixed)}[self.kernel]
        peak = torch.full((int(group.max()) + 1,), -torch.inf, device=logits.device)
        peak = peak.scatter_reduce(0, group, logits, "amax")
        shares = (logits - peak[group]).exp()
        pooled = replace(tokens, weight=tokens.weight * shares.clamp(min=1e-20)).merge(group)
        weight = torch.zeros_like(peak).index_add_(0, group, tokens.weight)
        order = pooled.slot.argsort()
        pooled = replace(pooled, weight=weight, frame=pooled.frame[:1].expand(len(pooled))).select(order)
        return Unread(pooled, run[0].start_s, max(one.end_s for one in run), place_s=run[0].at_s)
