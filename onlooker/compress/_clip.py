"""Methods that look at several frames together: a window of the stream is a clip to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from onlooker.compress._batching import Run, alike, apart, keep_waiting, nothing, nothings
from onlooker.compress._blending import taken_over
from onlooker.compress._keep import check_keep
from onlooker.compress._steps import Kept, Stepped, masked
from onlooker.core.checks import whole
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join
from onlooker.kernels.groups import Groups


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
        return self.passed(batch, states, self._whole)

    def passed(self, batch: Sequence[VisualTokens], states: Sequence[StreamState], run: Run) -> list[VisualTokens]:
        """`run` gets the frames of windows that are complete, one window after the other."""
        outs = nothings(batch)
        for members in alike(batch):
            full, rest = list[int](), list[int]()
            for i in members:
                held, tokens = _waiting(states[i]), batch[i]
                if held and (held[0].grid, len(held[0])) != (tokens.grid, len(tokens)):
                    outs[i], held = self.flush(states[i]) or outs[i], []
                (full if len(held) + 1 == self.frames else rest).append(i)
            complete, keep = [states[i] for i in full], partial(keep_waiting, batch, states, rest, _add)
            given = self._given(complete, run, [batch[i] for i in full], keep)
            for i, out in zip(full, given, strict=True):
                outs[i] = out
        return outs

    def flush(self, state: StreamState) -> VisualTokens | None:
        """The window as it is."""
        return self._given([state], self._whole)[0] if _waiting(state) else None

    def _given(
        self,
        states: Sequence[StreamState],
        run: Run,
        last: Sequence[VisualTokens] = (),
        meanwhile: Callable[[], None] = nothing,
    ) -> list[VisualTokens]:
        """What is kept of windows of one shape, perhaps with a last frame each, which are empty then."""
        if not states:
            meanwhile()
            return []
        ends = [[one] for one in last] or [[]] * len(states)
        parts = [one for state, end in zip(states, ends, strict=True) for one in (*_waiting(state), *end)]
        for state in states:
            _waiting(state).clear()
        return run(parts, states, meanwhile)

    def _whole(
        self, parts: Sequence[VisualTokens], states: Sequence[StreamState], meanwhile: Callable[[], None] = nothing
    ) -> list[VisualTokens]:
        mine = [state for state in states if isinstance(state, ClipState)]
        outs = self.clips(join(parts), len(parts) // len(mine), mine)
        meanwhile()
        return outs

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


def _add(state: StreamState, tokens: VisualTokens) -> None:
    assert isinstance(state, ClipState)
    state.waiting = [*state.waiting, tokens]


class SteppedWindows(WindowMethod, Stepped):
    """One whose windows are seen in steps of fixed shape: fill in `step`."""

    def clips(self, tokens: VisualTokens, frames: int, states: Sequence[ClipState]) -> list[VisualTokens]:
        """A step as it is."""
        kept = self.step(tokens, len(states), frames, self.recalled(tokens, states))
        return kept.given(len(states))

    @property
    def step_frames(self) -> int:
        """Those of a window."""
        return self.frames


def merged_into(tokens: VisualTokens, owner: Tensor, windows: int, kept: Tensor | None = None) -> Kept:
    """Of each of some windows of one size, one after the other, the tokens that own themselves, each the mean, by
    weight, of all tokens that it owns, at its own place.

    `owner` is int64 `[tokens]`, the number of a token that owns itself. `kept` (bool `[tokens]`) leaves the groups of
    some owners out.
    """
    given = owner == torch.arange(len(owner), device=owner.device)
    given = given if kept is None else given & kept
    return masked(averaged(tokens, owner), given.view(windows, -1))


def averaged(tokens: VisualTokens, owner: Tensor) -> VisualTokens:
    """All tokens, where those that own others are the mean, by weight, of all that they own, and stand for them.
    `owner` as in `merged_into`. Nothing waits for the device."""
    groups = Groups.of(owner)
    return taken_over(tokens, groups, torch.zeros_like(tokens.weight), groups.length > 1, groups.sums(tokens.weight))


@dataclass(frozen=True)
class Parts:
    """Parts of windows, as frames in a row, int64 `[frames]` each, counted over all windows: of every frame the number
    of its part, the part's first frame, and how many it has."""

    number: Tensor
    first: Tensor
    length: Tensor

    @classmethod
    def opened(cls, opens: Tensor) -> "Parts":
        """By the frames that open a part (bool `[windows, frames]`); the first of a window does. Nothing waits for the
        device."""
        flat = opens.clone()
        flat[:, 0].fill_(True)
        flat = flat.flatten()
        number = flat.long().cumsum(0) - 1
        place = torch.arange(len(flat), device=flat.device)
        first = (place * flat).cummax(0).values
        length = torch.zeros_like(number).index_add_(0, number, torch.ones_like(number))[number]
        return cls(number, first, length)


def segments(means: Tensor, windows: int, least: int, below: float) -> Parts:
    """Parts of windows by their frames' mean tokens (`[windows * frames, dim]`): cut where neighbours are less alike
    than `below`, and at the least alike places until a window has `least` parts."""
    each = means.unflatten(0, (windows, -1))
    alike = cosine_similarity(each[:, 1:], each[:, :-1], dim=2)
    order = alike.sort(dim=1, stable=True).indices
    cuts = (alike < below).scatter(1, order[:, : least - 1], True)
    return Parts.opened(torch.cat([cuts.new_zeros(windows, 1), cuts], dim=1))
