"""Drop the tokens that are like those of the step before (TimeChat-Online's Differential Token Drop).

Yao et al., "TimeChat-Online: 80% Visual Tokens are Naturally Redundant in Streaming Videos" (arXiv 2504.17343), section
3.2 and the authors' code. A token is dropped when it is more like the token at the same place of the frame before than
`threshold` (cosine): on Qwen2.5-VL features 0.25 drops about 85 %, 0.5 about 45 %. With `keep_ratio` a fixed share of
each frame is kept, the least alike ("frame-aware"). `compared=pixels`: it is dropped when the picture under it differs
by less than `pixel_threshold` (mean absolute, colours 0 to 1). The first frame is kept whole. Changed, and new:

- both frames of a pair are compared (the code compares the first of the last pair with the last of this);
- `anchored`: the reference is, place by place, the last token that was *kept*. The published form compares neighbours
  only, and of a scene that turns slowly, each step below the threshold, it emits nothing;
- `refresh`: a whole frame every so many, which bounds drift; `most_ratio`: at most this share of any other frame, the
  least alike ones: with a moving camera every place differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from onlooker.compress._batching import among_best, earlier, in_steps
from onlooker.compress._keep import check_keep, num_kept
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept, Stepped, masked
from onlooker.core import checks
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass
class DtdState(StreamState):
    """What the next frame is compared with."""

    replaces: ClassVar[bool] = True

    reference: Tensor | None = None
    """The frame before, or the last kept token of each place, `[tokens, dim]`."""
    age: int = 0
    """Frames since one was kept whole."""
    least_change: float | None = None
    """Change from which on a token is kept, where something controls it (`rate`); None: as the settings say."""


@dataclass(frozen=True)
class DTD(Stepped):
    """Differential token drop, as published or anchored."""

    realises: ClassVar[tuple[str, ...]] = ("timechat_online",)
    whole_frames: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("reference",)

    threshold: float = 0.5
    """Cosine above which a token is dropped, -1 to 1; lower drops more."""
    keep_ratio: float | None = None
    """Share of each frame to keep, in (0, 1], instead of a threshold."""
    compared: Literal["features", "pixels"] = "features"
    """What is compared: tokens as the language model would read them, or the picture under them."""
    pixel_threshold: float = 0.01
    """Mean absolute difference of colours (0 to 1) below which a token is dropped, when pixels are compared."""
    anchored: bool = False
    """Compare with the last kept token of each place, not with the frame before."""
    refresh: int | None = None
    """Keep a whole frame every so many frames; none: never again after the first."""
    most_ratio: float = 1.0
    """Share of a frame that is kept at most, in (0, 1], but for whole ones."""

    def __post_init__(self) -> None:
        check_keep(None, self.keep_ratio)
        check_keep(None, self.most_ratio)
        checks.number("threshold", self.threshold, least=-1, most=1, do="give a cosine")
        if self.refresh is not None:
            checks.whole("refresh", self.refresh, least=1, do="give a number of frames, or none")

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on a setting
        """The picture under each token, if that is compared."""
        return frozenset({"pixels"} if self.compared == "pixels" else ())

    @property
    def least_change(self) -> float:
        """Change from which on a token is kept."""
        return self.pixel_threshold if self.compared == "pixels" else 1 - self.threshold

    def less(self) -> Self:
        """At most half as many tokens of a frame."""
        return replace(self, most_ratio=self.most_ratio / 2, keep_ratio=self.keep_ratio and self.keep_ratio / 2)

    def new_state(self) -> DtdState:
        """Nothing to compare with yet."""
        return DtdState()

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The reference, whether there is one that still holds, and the least change that counts."""
        mine = [state for state in states if isinstance(state, DtdState)]
        fresh = [None if self.refresh and state.age >= self.refresh else state.reference for state in mine]
        before, known = earlier(fresh, self._compared(tokens, len(mine)))
        wanted = [self.least_change if state.least_change is None else state.least_change for state in mine]
        return before, known, in_steps(torch.tensor(wanted))[:, None].to(known.device, non_blocking=True)

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """What changed, of frames of which there is a reference, and all of others."""
        now, (before, known, least), pixels = self._compared(tokens, streams), past, self.compared == "pixels"
        change = in_steps((now.float() - before.float()).abs().mean(-1) / 255 if pixels else 1 - likeness(now, before))
        most = num_kept(change.shape[1], None, min(self.keep_ratio or 1.0, self.most_ratio))
        few = among_best(change, torch.full((len(change),), most, device=change.device))
        mask = (few if self.keep_ratio is not None else few & (change >= least)) | ~known[:, None]
        reference = torch.where(mask[..., None], now, before.to(now.dtype)) if self.anchored else now
        return masked(tokens, mask, (reference,))

    def noted(self, states: Sequence[StreamState], outs: Sequence[VisualTokens]) -> None:
        """When a frame was last kept whole."""
        for state, out in zip(states, outs, strict=True):
            assert isinstance(state, DtdState) and state.reference is not None
            state.age = 1 if len(out) == len(state.reference) else state.age + 1

    def _compared(self, tokens: VisualTokens, streams: int) -> Tensor:
        some = tokens.extras["pixels"] if self.compared == "pixels" else tokens.features.detach()
        return some.unflatten(0, (streams, -1))
