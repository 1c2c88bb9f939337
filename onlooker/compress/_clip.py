"""Methods that look at several frames together: a window of the stream is a clip to them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from onlooker.compress._batching import alike, apart, nothings, owned
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
        """The windows of those streams whose frame completes one; those of one shape together."""
        outs = nothings(batch)
        for members in alike(batch):
            full: list[int] = []
            for i, tokens in zip(members, owned(batch, members), strict=True):
                state = states[i]
                assert isinstance(state, ClipState)
                if state.waiting and (state.waiting[0].grid, len(state.waiting[0])) != (tokens.grid, len(tokens)):
                    outs[i] = self.flush(state) or outs[i]
                state.waiting = [*state.waiting, tokens]
                full += [i] if len(state.waiting) == self.frames else []
            for i, out in zip(full, self._given([states[i] for i in full]) if full else (), strict=True):
                outs[i] = out
        return outs

    def flush(self, state: StreamState) -> VisualTokens | None:
        """The window as it is."""
        assert isinstance(state, ClipState)
        return self._given([state])[0] if state.waiting else None

    def _given(self, states: Sequence[StreamState]) -> list[VisualTokens]:
        """What is kept of windows of one shape, which are empty then."""
        mine = [state for state in states if isinstance(state, ClipState)]
        frames = len(mine[0].waiting)
        tokens = join(one for state in mine for one in state.waiting)
        for state in mine:
            state.waiting = []
        return self.clips(tokens, frames, mine)

    def clips(self, tokens: VisualTokens, frames: int, states: Sequence[ClipState]) -> list[VisualTokens]:
        """What is kept of the windows of several streams, one after the other in `tokens`, of so many frames each.
        Fill in this or `clip`, which gets them one by one."""
        each = apart(tokens, [len(tokens) // len(states)] * len(states))
        return [self.clip(window, frames, state) for window, state in zip(each, states, strict=True)]

    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """What is kept of so many frames with equally many tokens each, in order."""
        return self.clips(tokens, frames, [state])[0]


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


def merged_into(tokens: VisualTokens, owner: Tensor, windows: int, kept: Tensor | None = None) -> list[VisualTokens]:
    """Of each of some windows of one size, one after the other, the tokens that own themselves, each the mean, by
    weight, of all tokens that it owns, at its own place.

    `owner` is int64 `[tokens]`, the number of a token that owns itself. `kept` (bool `[tokens]`) leaves the groups of
    some owners out. Waits for the device once.
    """
    itself = owner == torch.arange(len(owner), device=owner.device)
    given = itself if kept is None else itself & kept
    groups, counts = torch.stack([itself, given]).view(2, windows, -1).sum(2).tolist()
    owners = given.logical_not().byte().sort(stable=True).indices[: sum(counts)]
    number = itself.cumsum(0) - 1
    merged = tokens.merge(number[owner], sum(groups))
    merged = merged if kept is None else merged.select(number[owners])
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
    return apart(placed, counts)


def chosen_of(tokens: VisualTokens, mask: Tensor) -> list[VisualTokens]:
    """The tokens of some windows, one after the other, where `mask` (bool `[windows, tokens]`) is true. Waits for the
    device once."""
    counts = mask.sum(1).tolist()
    place = mask.flatten().logical_not().byte().sort(stable=True).indices[: sum(counts)]
    return apart(tokens.select(place), counts)


def averaged(tokens: VisualTokens, owner: Tensor) -> VisualTokens:
    """All tokens, where those that own others are the mean, by weight, of all that they own, and stand for them.
    `owner` as in `merged_into`. Nothing waits for the device."""
    order = owner.argsort(stable=True)
    lengths = torch.zeros_like(owner).index_add_(0, owner, torch.ones_like(owner))
    owns = lengths > 1

    def total(value: Tensor) -> Tensor:
        return torch.segment_reduce(value[order], "sum", lengths=lengths, unsafe=True)

    standing = total(tokens.weight)

    def mean(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        each = (-1, *[1] * (value.ndim - 1))
        found = total(value.detach().float() * tokens.weight.view(each)) / standing.view(each)
        return torch.where(owns.view(each), found.to(value.dtype), value)

    extras = {name: mean(value) for name, value in tokens.extras.items()}
    return replace(
        tokens, features=mean(tokens.features), extras=extras, weight=torch.where(owns, standing, tokens.weight)
    )


def segments(means: Tensor, least: int, below: float) -> list[tuple[int, int]]:
    """Parts of a clip, as first frame and the one behind the last, by its frames' mean tokens (`[frames, dim]`): cut
    where neighbours are less alike than `below`, and at the least alike places until there are `least` parts."""
    return _cut(cosine_similarity(means[1:], means[:-1], dim=1).tolist(), least, below)


def segments_of(means: Tensor, windows: int, least: int, below: float) -> list[tuple[int, int]]:
    """The same of several windows, one after the other; no part is in two of them."""
    frames = len(means) // windows
    every = cosine_similarity(means[1:], means[:-1], dim=1).tolist()
    return [
        (first + start, end + start)
        for start in range(0, len(means), frames)
        for first, end in _cut(every[start : start + frames - 1], least, below)
    ]


def _cut(likeness: list[float], least: int, below: float) -> list[tuple[int, int]]:
    cuts = {n + 1 for n, alike in enumerate(likeness) if alike < below}
    for n in sorted(range(len(likeness)), key=lambda n: (likeness[n], n)):
        if len(cuts) + 1 >= least:
            break
        cuts.add(n + 1)
    edges = [0, *sorted(cuts), len(likeness) + 1]
    return list(itertools.pairwise(edges))
