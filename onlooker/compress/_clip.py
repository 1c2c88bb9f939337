"""Methods that look at several frames together: a window of the stream is a clip to them."""

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from onlooker.compress._batching import alike, nothings, owned
from onlooker.compress._keep import check_keep
from onlooker.core.checks import whole
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join


@dataclass
class ClipState(StreamState):
    """The frames of the window so far."""

    replaces: ClassVar[bool] = True

    waiting: list[VisualTokens] = field(default_factory=list)


@dataclass(frozen=True)
class WindowMethod(Compressor):
    """Gives out `frames` frames together when the last of them has come: the first is late by one less.

    What authors wrote for whole clips runs on a window here, so that a live stream waits for no more than that. A
    question, a note and a change of the picture's size end a window early.
    """

    whole_frames: ClassVar[bool] = True

    frames: int = 8
    """Frames that are looked at together."""

    def __post_init__(self) -> None:
        whole("frames", self.frames, least=1, most=256, do="frames that are looked at together, such as 8")

    @property
    def lookahead(self) -> int:
        """All but one frame of the window."""
        return self.frames - 1

    def num_held(self, state: StreamState) -> int:
        """Frames of the window so far."""
        return len(_waiting(state))

    def new_state(self) -> StreamState:
        """An empty window."""
        return ClipState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The window, if this frame completes it."""
        return self.compress_streams([tokens], [state])[0]

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The windows of those streams whose frame completes one."""
        outs = nothings(batch)
        for members in alike(batch):
            for i, tokens in zip(members, owned(batch, members), strict=True):
                outs[i] = self._taken(tokens, states[i]) or outs[i]
        return outs

    def _taken(self, tokens: VisualTokens, state: StreamState) -> VisualTokens | None:
        assert isinstance(state, ClipState)
        out, waiting = None, state.waiting
        if waiting and (waiting[0].grid, len(waiting[0])) != (tokens.grid, len(tokens)):
            out, waiting = self.flush(state), []
        state.waiting = [*waiting, tokens]
        return self.flush(state) if len(state.waiting) == self.frames else out

    def flush(self, state: StreamState) -> VisualTokens | None:
        """The window as it is."""
        assert isinstance(state, ClipState)
        waiting, state.waiting = state.waiting, []
        return self.clip(join(waiting), len(waiting), state) if waiting else None

    @abstractmethod
    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """What is kept of so many frames with equally many tokens each, in order."""


@dataclass(frozen=True)
class ClipMethod(WindowMethod):
    """Keeps a share of every window."""

    keep_ratio: float = 0.3
    """Share of the window's tokens to keep, in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_keep(None, self.keep_ratio)

    def less(self) -> Self:
        """Half the share."""
        return replace(self, keep_ratio=self.keep_ratio / 2)


def _waiting(state: StreamState) -> list[VisualTokens]:
    assert isinstance(state, ClipState)
    return state.waiting


def merged_into(tokens: VisualTokens, owner: Tensor, kept: Tensor | None = None) -> VisualTokens:
    """The tokens that own themselves, each the mean, by weight, of all tokens that it owns, at its own place.

    `owner` is int64 `[tokens]`, the number of a token that owns itself. `kept` (bool `[tokens]`) leaves the groups of
    some owners out. Waits for the device.
    """
    itself = owner == torch.arange(len(owner), device=owner.device)
    group = (itself.cumsum(0) - 1)[owner]
    merged, owners = tokens.merge(group), itself.nonzero()[:, 0]
    placed = replace(
        merged,
        frame=tokens.frame[owners],
        time_s=tokens.time_s[owners],
        row=tokens.row[owners],
        col=tokens.col[owners],
        extras={
            name: value if value.is_floating_point() else tokens.extras[name][owners]
            for name, value in merged.extras.items()
        },
    )
    return placed if kept is None else placed.select(kept[owners].nonzero()[:, 0])


def segments(means: Tensor, least: int, below: float) -> list[tuple[int, int]]:
    """Parts of a clip, as first frame and the one behind the last, by its frames' mean tokens (`[frames, dim]`): cut
    where neighbours are less alike than `below`, and at the least alike places until there are `least` parts."""
    likeness = cosine_similarity(means[1:], means[:-1], dim=1).tolist()
    cuts = {n + 1 for n, alike in enumerate(likeness) if alike < below}
    for n in sorted(range(len(likeness)), key=lambda n: (likeness[n], n)):
        if len(cuts) + 1 >= least:
            break
        cuts.add(n + 1)
    edges = [0, *sorted(cuts), len(means)]
    return list(itertools.pairwise(edges))
