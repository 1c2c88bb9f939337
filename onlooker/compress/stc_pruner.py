"""Keep the tokens least like the present picture and the recent past (STC-Pruner)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.compress._batching import in_steps
from onlooker.compress._scorer import Scorer
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
    num_frames: int = 0
    """Frames seen."""


@dataclass(frozen=True)
class STCPruner(Scorer):
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
        if not 0 <= self.alpha <= 1:
            raise InputError("alpha is a share", given=f"alpha={self.alpha}", do="give a number from 0 to 1")
        if self.window is not None and self.window < 1:
            raise InputError("the past needs frames", given=f"window={self.window}", do="give 1 or more, or none")

    def new_state(self) -> PrunerState:
        """No past yet."""
        return PrunerState()

    def scores(
        self, features: Tensor, batch: Sequence[VisualTokens], states: Sequence[StreamState], pruned: bool
    ) -> Tensor | None:
        """How unlike both anchors each token is; then the frame's mean enters the past."""
        present = features.mean(1)
        novelty = None
        if pruned:
            novelty = self._novelty(features, _past_means(states, present), present)
        _remember(states, present, self.window)
        return novelty

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


def _past_means(states: Sequence[StreamState], present: Tensor) -> Tensor:
    """Of each stream the mean of its past, `[streams, dim]`; where there is none, the present frame's."""
    known = [state for state in states if isinstance(state, PrunerState) and state.history is not None]
    if not known:
        return present
    # Rows that no frame has filled yet are zeros.
    pasts = torch.stack([state.history for state in known if state.history is not None])
    counts = [min(state.num_frames, pasts.shape[1]) for state in known]
    means = pasts.sum(1) / _numbers(counts, pasts)
    if len(known) == len(states):
        return means
    rows = iter(means)
    mine = zip(states, present, strict=True)
    return torch.stack([next(rows) if any(state is one for one in known) else mean for state, mean in mine])


def _remember(states: Sequence[StreamState], present: Tensor, window: int | None) -> None:
    # New tensors throughout, not writes in place: forks share them. Each in memory of its own, as a row of the batch
    # would keep the whole batch alive; all by as many launches as one.
    mine: list[PrunerState] = list(states)  # pyright: ignore[reportAssignmentType] - made by the method
    old = [present.new_zeros(window or 1, present.shape[1]) if s.history is None else s.history for s in mine]
    new = [torch.empty_like(history) for history in old]
    for state in mine:
        state.num_frames += 1
    if window:
        torch._foreach_copy_([one[-1] for one in new], list(present.unbind(0)))
        if window > 1:
            torch._foreach_copy_([one[:-1] for one in new], [one[1:] for one in old])
    else:
        means = torch.cat(old)
        means = means + (present - means) / _numbers([state.num_frames for state in mine], means)
        torch._foreach_copy_(new, list(means.split(1)))
    for state, history in zip(mine, new, strict=True):
        state.history = history


def _numbers(counts: Sequence[int], like: Tensor) -> Tensor:
    """Float32 `[streams, 1]`, without waiting for the device."""
    numbers = torch.tensor(list(counts), dtype=torch.float32, pin_memory=like.is_cuda)
    return numbers.to(like.device, non_blocking=True)[:, None]
