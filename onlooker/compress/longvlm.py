"""Ten frames become a few tokens by merging in rounds, perhaps behind what the whole stream looked like (LongVLM).

Weng et al., "LongVLM: Efficient Long Video Understanding via Large Language Models", ECCV 2024 (arXiv 2404.03384),
section 3.2: all tokens of a segment of ten frames are merged as in ToMe, in rounds that merge half of them, until 30 of
2,560 are left. Section 3.3: the class token behind every layer, averaged over time, is put before them. Changed:

- nothing is trained here: the authors trained the projector on merged tokens, so this is a control, and coarse;
- tokens are compared by their own cosine, behind the projector; there, by the mean of the parts of a head;
- `global_rows`: the mean is that of the stream so far, not of the clip, and its rows take the places of merged tokens,
  the first of the segment's first frame. They stand for no token of their own (weight 0). A tower without a class
  token has one such row, the mean token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import apart
from onlooker.compress._clip import ClipMethod, ClipState, SteppedWindows
from onlooker.compress._keep import num_kept
from onlooker.compress._steps import Kept
from onlooker.compress.tome import merged_in_rounds
from onlooker.core.tokens import VisualTokens


@dataclass
class SegmentState(ClipState):
    """The segment so far, and what the stream looked like."""

    about: Tensor | None = None
    """Sum over frames of their global rows, float32 `[rows, dim]`."""
    num_frames: int = 0


@dataclass(frozen=True)
class LongVLM(SteppedWindows, ClipMethod):
    """Hierarchical merging of a segment to a constant number of tokens."""

    realises: ClassVar[tuple[str, ...]] = ("longvlm",)

    frames: int = 10
    """Frames of a segment."""
    keep_ratio: float = 30 / 2560
    """Share of a segment's tokens that is left, in (0, 1]."""
    global_rows: bool = False
    """Put the stream's mean global rows before every segment."""

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on a setting
        """Rows about the whole frame, if they are put in."""
        return frozenset({"global"} if self.global_rows else ())

    def new_state(self) -> SegmentState:
        """An empty segment."""
        return SegmentState()

    @property
    def steady(self) -> bool:
        """Not with rows that are put in where there is room for them."""
        return not self.global_rows

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Segments after as many rounds as their budget asks for."""
        return Kept(merged_in_rounds(tokens, streams, num_kept(len(tokens) // streams, None, self.keep_ratio)))

    def clips(self, tokens: VisualTokens, frames: int, states: Sequence[ClipState]) -> list[VisualTokens]:
        """Merged segments, behind the rows that are put in."""
        merged = super().clips(tokens, frames, states)
        if not self.global_rows:
            return merged
        whole = apart(tokens, [len(tokens) // len(states)] * len(states))
        return [self._with_rows(*one) for one in zip(merged, whole, states, strict=True)]

    def _with_rows(self, tokens: VisualTokens, segment: VisualTokens, state: ClipState) -> VisualTokens:
        assert isinstance(state, SegmentState)
        rows = segment.whole["global"].detach().float()
        total = rows.sum(0) if state.about is None else state.about + rows.sum(0)
        state.about, state.num_frames = total, state.num_frames + len(rows)
        return _with_rows(tokens, segment, total / state.num_frames)


def _with_rows(tokens: VisualTokens, segment: VisualTokens, rows: Tensor) -> VisualTokens:
    """The rows at free places of a segment's first frame, before its tokens; as many as there are free places."""
    own = tokens.frame == segment.frame[0]
    size = int((segment.frame == segment.frame[0]).sum())
    free = torch.ones(size, dtype=torch.bool, device=rows.device)
    taken = torch.isin(segment.slot[:size], tokens.slot[own])
    free &= ~taken
    places = free.nonzero()[: len(rows), 0]
    put = segment.select(places)
    extras = {name: torch.cat([torch.zeros_like(put.extras[name]), value]) for name, value in tokens.extras.items()}
    joined = replace(
        tokens,
        features=torch.cat([rows[: len(places)].to(tokens.features.dtype), tokens.features]),
        frame=torch.cat([put.frame, tokens.frame]),
        time_s=torch.cat([put.time_s, tokens.time_s]),
        row=torch.cat([put.row, tokens.row]),
        col=torch.cat([put.col, tokens.col]),
        weight=torch.cat([torch.zeros_like(put.weight), tokens.weight]),
        extras=extras,
    )
    order = (joined.frame * segment.grid[0] * segment.grid[1] + joined.slot).argsort(stable=True)
    return joined.select(order)
