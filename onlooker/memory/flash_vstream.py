"""Keep a bounded sketch of the whole stream, and its most telling frames whole (Flash-VStream).

Two papers: STAR (Zhang et al., arXiv 2406.08085): 25 clusters of frames as 4 x 4 tokens, 25 abstract tokens, the frames
nearest to the 3 heaviest clusters, and the newest frame; CSM and DAM (Flash-VStream, ICCV 2025, arXiv 2506.23825): 60
clusters at half the resolution and the frames nearest to the 30 heaviest. Clusters are a weighted k-means of what was
kept and the new frame (at most 10 rounds, until no centre moves by 1e-4). Training-free here. Changed:

- k-means starts from what is there with two clusters made one (those by which the weighted squares grow least) instead
  of at random, so that two runs are alike;
- a cluster keeps one whole frame, the nearest to it of those that its parts kept; theirs is looked for in a buffer of
  all frames, which grows for ever;
- the abstract memory's learned attention is that of standardised tokens: each new frame's mean token moves the slots
  that are like it, by 0.2 in all;
- small frames are means of the model's tokens, not a second pass through the tower; the newest frame is always read;
  everything is told at its mean time, in order, instead of part by part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.memory._held import HeldState, as_given, in_order, joined, k_means, nearest, pooled, tokens_of

SIDE, SLOTS, STEP = 4, 25, 0.2
SIZES = {"star": (25, 3), "csm_dam": (60, 30)}


@dataclass
class Sketch(HeldState):
    """Clusters of frames, each with its weight in frames and a whole frame that was nearest to it."""

    grid: tuple[int, int] | None = None
    clusters: list[Unread] = field(default_factory=list)
    whole: list[Unread] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    abstract: Tensor | None = None


@dataclass(frozen=True)
class FlashVStream(MemoryPolicy):
    """Everything coarsely, the heaviest clusters in full."""

    realises: ClassVar[tuple[str, ...]] = ("flash_vstream",)
    holds_tokens: ClassVar[bool] = True

    form: Literal["star", "csm_dam"] = "star"
    """Which of the two papers' memories."""
    clusters: int | None = None
    """Clusters kept; None: as published, 25 or 60."""
    details: int | None = None
    """Heaviest clusters of which a whole frame is read too; None: as published, 3 or 30."""

    def __post_init__(self) -> None:
        if min(self.clusters or 1, self.details or 0) < 0 or self.clusters == 0:
            given = f"clusters={self.clusters}, details={self.details}"
            raise InputError("a sketch has clusters", given=given, do="for example flash_vstream:clusters=8,details=2")

    def new_state(self) -> Sketch:
        """Nothing yet."""
        return Sketch()

    def absorb(self, new: Unread, state: StreamState) -> None:
        """The new frame is a cluster of its own; of one cluster too many, k-means makes one fewer."""
        assert isinstance(state, Sketch)
        if not state.take(new):
            return
        tokens = tokens_of(new)
        if state.grid is None:
            rows, cols = tokens.grid
            state.grid = (SIDE, SIDE) if self.form == "star" else (-(-rows // 2), -(-cols // 2))
        grid = state.grid
        if self.form == "star":
            state.abstract = _attended(state.abstract, (tokens.weight @ tokens.features.float()) / tokens.weight.sum())
        parts = [*state.clusters, Unread(pooled(tokens, grid), new.start_s, new.end_s)]
        whole, weights = [*state.whole, new], [*state.weights, 1.0]
        if len(parts) > (self.clusters or SIZES[self.form][0]):
            points = torch.stack([tokens_of(one).features.flatten() for one in parts])
            groups = k_means(points, torch.tensor(weights, device=points.device))
            members = [[n for n, group in enumerate(groups) if group == one] for one in dict.fromkeys(groups)]
            parts = [joined([parts[n] for n in some], [weights[n] for n in some]) for some in members]
            whole = [
                nearest([whole[n] for n in some], lambda tokens: pooled(tokens, grid), tokens_of(one).features)
                for some, one in zip(members, parts, strict=True)
            ]
            weights = [sum(weights[n] for n in some) for some in members]
        state.clusters, state.whole, state.weights = parts, whole, weights

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """The abstract tokens, all clusters, a whole frame of the heaviest (of equals the newest), the newest frame."""
        assert isinstance(state, Sketch)
        if state.newest is None:
            return state.notes
        like, weights = tokens_of(state.newest), state.weights
        order = sorted(range(len(weights)), key=lambda n: (weights[n], state.clusters[n].at_s), reverse=True)
        details = [state.whole[n] for n in order[: SIZES[self.form][1] if self.details is None else self.details]]
        details = [one for one in details if one.start_s != state.newest.start_s]
        parts = [as_given(one, like) for one in state.clusters]
        if state.abstract is not None:
            start_s = min(one.start_s for one in parts)
            slots = VisualTokens.of_frame(state.abstract, (1, len(state.abstract)), 0, start_s)
            parts = [as_given(Unread(slots, start_s, state.newest.end_s), like), *parts]
        return in_order([*parts, *details, *state.notes, state.newest])


def _attended(slots: Tensor | None, new: Tensor) -> Tensor:
    """Slots `[slots, dim]` moved towards a new token `[dim]`, or one slot more."""
    if slots is None or len(slots) < SLOTS:
        return new[None] if slots is None else torch.cat([slots, new[None]])
    like = layer_norm(slots, slots.shape[1:]) @ layer_norm(new, new.shape) / new.shape[0] ** 0.5
    share = STEP * like.softmax(0)[:, None]
    return slots * (1 - share) + share * new
