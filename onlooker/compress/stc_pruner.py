"""Keep the tokens least like the present picture and the recent past (STC-Pruner)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.compress._batching import held, in_steps
from onlooker.compress._scorer import SteppedScorer
from onlooker.core import checks
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


@dataclass
class PrunerState(StreamState):
    """The recent past of one stream."""

    replaces: ClassVar[bool] = True

    history: Tensor | None = None
    """Frame means in full width, oldest first, float32 `[window, dim]`; one row, their mean, without a window."""
    seen: Tensor | None = None
    """Number of frames before, float32 `[1]`."""


@dataclass(frozen=True)
class STCPruner(SteppedScorer):
    """Dual-anchor pruning of Streaming Token Compression (STC, arXiv 2512.00891).

    Every token is compared with two anchors: the mean token of its own frame (space) and the mean of the frame means
    before it (time). The tokens least like both are kept. `dual_anchor` is the paper's score, a weighted sum of cosine
    distances. `gaussian` is that of the authors' code: tokens are reduced to the half of the channels that varies
    least over the frame and compared by a sum of Gaussians of five widths.

    What differs from the authors' code:

    - The past is kept in full width and reduced to the present frame's channels when it is used. There, frames chosen
      on different channels were averaged slot by slot.
    - A frame is scored before it enters the past, as in the paper. There, it was part of its own past.
    - The past is the last `window` frames, as in the paper (which names no width). There, it was a list without end;
      `window=None` is its mean, kept as one running row.
    - The past belongs to a stream. There, it belonged to the model and went from one video into the next.
    - The first frame has no past, so its own mean stands in for it.
    - In `gaussian`, `alpha` weights the two anchors as in `dual_anchor`; 0.5 is the authors' plain sum. Channels are
      chosen per frame (there: per chunk, which was one frame).
    - Scores that are equal within rounding are settled by position.
    - A budget of all tokens costs nothing but the history.
    """

    realises: ClassVar[tuple[str, ...]] = ("stc",)
    remembers: ClassVar[tuple[str, ...]] = ("history", "seen")

    score: Literal["dual_anchor", "gaussian"] = "dual_anchor"
    """How a token is compared with the anchors: the paper's cosines, or the five Gaussians of the authors' code."""
    alpha: float = 0.5
    """Weight of the past against the present picture, 0 to 1."""
    window: int | None = 16
    """Frames that make up the past; none for all frames since the stream began."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in ("dual_anchor", "gaussian"):
            raise InputError("there is no such score", given=f"score={self.score}", do="dual_anchor or gaussian")
        checks.number("alpha", self.alpha, least=0, most=1, do="give the share of the past")
        if self.window is not None:
            checks.whole("window", self.window, least=1, do="give a number of frames, or none")

    def new_state(self) -> PrunerState:
        """No past yet."""
        return PrunerState()

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The frame means that are remembered, and of how many frames they are."""
        blank = torch.zeros(self.window or 1, tokens.features.shape[1], device=tokens.features.device)
        return held(states, "history", blank), held(states, "seen", blank[0, :1])

    def worth(
        self, tokens: VisualTokens, features: Tensor, past: tuple[Tensor, ...], pruned: bool
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """How unlike both anchors each token is; then the frame's mean enters the past."""
        features, (history, seen) = features.float(), past
        present = features.mean(1)
        # Rows that are not filled yet are zeros, and come first.
        anchors = history.sum(1) / seen.clamp(1, history.shape[1])
        novelty = self._novelty(features, torch.where(seen > 0, anchors, present), present) if pruned else None
        if self.window:
            return novelty, (torch.cat([history[:, 1:], present[:, None]], 1), seen + 1)
        return novelty, (history + (present[:, None] - history) / (seen[..., None] + 1), seen + 1)

    def _novelty(self, features: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """How unlike both anchors (`[streams, dim]`) each token is, `[streams, tokens]`, in whole steps."""
        if self.score == "dual_anchor":
            unit, past, present = normalize(features, dim=-1), normalize(past, dim=-1), normalize(present, dim=-1)
            like_past, like_present = (unit * past[:, None]).sum(-1), (unit * present[:, None]).sum(-1)
        else:
            steady = features.var(1, correction=0).argsort(dim=-1, stable=True)[:, : max(1, features.shape[2] // 2)]
            unit = normalize(features.gather(2, steady[:, None].expand(-1, features.shape[1], -1)), dim=-1)
            like_past = _gaussians(unit, normalize(past.gather(1, steady), dim=-1))
            like_present = _gaussians(unit, unit.mean(1))  # this anchor is left at its length, as in the source
        return -in_steps(self.alpha * like_past + (1 - self.alpha) * like_present)


def _gaussians(unit: Tensor, anchor: Tensor) -> Tensor:
    """Likeness of tokens `[streams, tokens, dim]` to one anchor each, `[streams, dim]`, summed over five widths."""
    distance = (unit - anchor[:, None]).square().sum(-1)
    return torch.stack([torch.exp(-distance / (2 * scale)) for scale in _SCALES]).sum(0)
