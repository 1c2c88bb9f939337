"""A fixed number of tokens a frame: of what moves, those that are looked at; of what stands still, centres (CTR).

"StreamingTOM: Streaming Token Compression for Efficient Video Understanding" (arXiv 2510.18269), stage 1,
causal temporal reduction. A token is static when its cosine to the same place of the frame before is above `tau`, else
dynamic; the budget is dealt in proportion. Of the dynamic ones the most salient stay; the static ones are merged into
dense centres, each `beta` of itself and the rest the mean of those nearest to it. A constant number of tokens means a
constant prefill, and groups of one size. The authors keep 50 of 196. Changed:

- centres are chosen by distance to *denser* tokens, as the method is defined: the released code compares with less
  dense ones, which picks isolated tokens;
- any grid and any budget (there: 196 tokens, 28 layers); equal tokens are settled by position;
- a merged token is written down as standing for its members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import STEPS, among_best, earlier, in_steps
from onlooker.compress._blending import blended_flat
from onlooker.compress._density import centres_of, density_scores, mean_of_members
from onlooker.compress._keep import Budgeted
from onlooker.compress._likeness import likeness
from onlooker.compress._steps import Kept, Stepped
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass
class CtrState(StreamState):
    """The frame before."""

    replaces: ClassVar[bool] = True

    before: Tensor | None = None
    """`[tokens, dim]`."""


@dataclass(frozen=True)
class CTR(Budgeted, Stepped):
    """Causal temporal reduction."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    whole_frames: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("before",)

    tau: float = 0.9
    """Cosine to the frame before above which a token is static."""
    beta: float = 0.6
    """Share of a merged token that is its centre's, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise InputError("beta is a share", given=f"beta={self.beta}", do="give a number from 0 to 1")

    def new_state(self) -> CtrState:
        """No frame before: all is dynamic."""
        return CtrState()

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """The frame before, and whether there was one."""
        now = tokens.features.detach().unflatten(0, (len(states), -1))
        return earlier([state.before for state in states if isinstance(state, CtrState)], now)

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Dynamic tokens, and static ones merged into centres."""
        now, (before, known) = tokens.features.detach().unflatten(0, (streams, -1)), past
        keep = self.num_kept(now.shape[1])
        if keep == now.shape[1]:
            return Kept(tokens, past=(now,))
        static = (in_steps(likeness(now, before)) > self.tau * STEPS) & known[:, None]
        saliency = tokens.extras["saliency"].detach().float().view(streams, -1)
        dynamic, centre, owner = _dealt(now, saliency, static, keep)
        joined = static & ~centre
        _, number = mean_of_members(saliency, owner, joined)
        order = (dynamic | centre).logical_not().byte().sort(dim=1, stable=True).indices[:, :keep]

        def blend(value: Tensor) -> Tensor:
            mean, _ = mean_of_members(value, owner, joined)
            return self.beta * value + (1 - self.beta) * mean

        return Kept(blended_flat(tokens, order, 1 + number, blend), past=(now,))


def _dealt(now: Tensor, saliency: Tensor, static: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The dynamic tokens that stay and the static ones that are centres, bool `[streams, tokens]`, and the centre that
    each token is nearest to."""
    num_static = static.sum(1)
    num_dynamic = now.shape[1] - num_static
    # A share of the budget each, rounded down for the static; what one side cannot use goes to the other.
    centres = torch.minimum((keep * num_static) // now.shape[1], num_static)
    centres = torch.maximum(centres, keep - num_dynamic)
    share = in_steps(saliency / saliency.amax(1, keepdim=True).clamp_min(1e-12))
    dynamic = among_best(share.masked_fill(static, -1), keep - centres) & ~static
    centre, owner = centres_of(*density_scores(now, static), centres)
    return dynamic, centre, owner
