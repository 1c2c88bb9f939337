"""What methods share that work on many streams at once: groups of like frames, and tokens chosen without loops."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from onlooker.compress._keep import check_keep
from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join
from onlooker.kernels import ranks

STEPS = 1 << 15
"""Steps of a score from 0 to 1 (see `in_steps`)."""
COLUMNS = ("features", "frame", "time_s", "row", "col", "weight")
"""Arrays that every list of tokens has, in the order in which `apart` gives them."""


class Run(Protocol):
    """What does a step: frames of some streams, one stream after the other, to what is kept of each. `meanwhile` is
    done while the device is at work, where there is one, and at the end otherwise."""

    def __call__(
        self, parts: Sequence[VisualTokens], states: Sequence[StreamState], meanwhile: Callable[[], None] = ...
    ) -> list[VisualTokens]:
        """The tokens of each stream."""
        ...


def nothing() -> None:
    """Nothing to do meanwhile."""


class Batched(Compressor):
    """A compressor that works on many streams at once: fill in `compress_streams`."""

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens to keep of one frame of one stream."""
        return self.compress_streams([tokens], [state])[0]

    @abstractmethod
    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """One frame of each stream."""


@dataclass(frozen=True)
class LongRun(Batched):
    """A compressor that keeps a share of the stream's tokens, more of some frames and less of others."""

    keep_ratio: float = 0.3
    """Share of the stream's tokens to keep in the long run, in (0, 1]."""

    def __post_init__(self) -> None:
        check_keep(None, self.keep_ratio)

    def less(self) -> Self:
        """Half the share."""
        return replace(self, keep_ratio=self.keep_ratio / 2)


def alike(batch: Sequence[VisualTokens]) -> list[list[int]]:
    """Which frames have one shape and can be stacked; frames without tokens are in no group."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, tokens in enumerate(batch):
        if len(tokens):
            groups.setdefault((tokens.features.shape, tokens.features.dtype, tokens.grid), []).append(number)
    return list(groups.values())


def beside(batch: Sequence[VisualTokens], members: Sequence[int]) -> Tensor:
    """Features of some frames in their own format, `[streams, tokens, dim]`, without gradients, in memory of its
    own."""
    return torch.stack([batch[number].features.detach() for number in members])


def stacked(batch: Sequence[VisualTokens], members: Sequence[int]) -> Tensor:
    """The same in float32."""
    return beside(batch, members).float()


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors of one format, each in memory of its own, by one launch: what a stream remembers must not keep
    the rows of the others alive."""
    made = [torch.empty_like(one) for one in tensors]
    torch._foreach_copy_(made, list(tensors))
    return made


def together(batch: Sequence[VisualTokens], members: Sequence[int]) -> VisualTokens:
    """The frames of some streams as one flat list, stream after stream, in memory of its own: what takes an operation
    for each array takes it once for all streams."""
    return join(batch[number] for number in members)


def apart(flat: VisualTokens, counts: Sequence[int]) -> list[VisualTokens]:
    """The parts of a flat list of several streams, so many tokens of each; they share its memory."""
    columns = [getattr(flat, name).split_with_sizes(counts) for name in COLUMNS]
    extras, whole = _each(flat.extras, len(counts), counts), _each(flat.whole, len(counts), None)
    return [
        VisualTokens(features, frame, time_s, row, col, flat.grid, weight, more, about)
        for features, frame, time_s, row, col, weight, more, about in zip(*columns, extras, whole, strict=True)
    ]


def _each(arrays: Mapping[str, Tensor], streams: int, counts: Sequence[int] | None) -> list[dict[str, Tensor]]:
    """The arrays of each stream, cut to so many rows of each; None: to equally many."""
    if not arrays:
        return [{} for _ in range(streams)]
    parts = [one.tensor_split(streams) if counts is None else one.split_with_sizes(counts) for one in arrays.values()]
    return [dict(zip(arrays, rows, strict=True)) for rows in zip(*parts, strict=True)]


def nothings(batch: Sequence[VisualTokens]) -> list[VisualTokens]:
    """None of the tokens of some frames."""
    none: list[VisualTokens] = list(batch)
    for members in alike(batch):
        one = batch[members[0]]
        columns = {name: getattr(one, name)[:0] for name in COLUMNS}
        empty = replace(one, **columns, extras={name: value[:0] for name, value in one.extras.items()})
        for i in members:
            none[i] = replace(empty, whole=batch[i].whole) if batch[i].whole else empty
    return none


def owned(batch: Sequence[VisualTokens], members: Sequence[int]) -> list[VisualTokens]:
    """The frames of some streams of one shape with copies of what a caller may write the next frame into: features,
    extras and what describes whole frames. Where tokens lie is never written again."""
    some = [batch[number] for number in members]
    features = torch.cat([one.features for one in some]).split_with_sizes([len(one) for one in some])
    return [
        VisualTokens(own, one.frame, one.time_s, one.row, one.col, one.grid, one.weight, extras, about)
        for one, own, extras, about in zip(
            some, features, _copied([one.extras for one in some]), _copied([one.whole for one in some]), strict=True
        )
    ]


def keep_waiting(
    batch: Sequence[VisualTokens], states: Sequence[StreamState], members: Sequence[int], keep: Callable[..., None]
) -> None:
    """Let each of some streams `keep` (its state, the frame) a frame of one shape, as `owned` gives it."""
    for i, tokens in zip(members, owned(batch, members) if members else (), strict=True):
        keep(states[i], tokens)


def _copied(each: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Copies of the arrays of some streams, those of one name by one launch."""
    if not each[0]:
        return [{} for _ in each]
    made = {
        name: torch.cat([one[name] for one in each]).split_with_sizes([len(one[name]) for one in each])
        for name in each[0]
    }
    return [{name: rows[place] for name, rows in made.items()} for place in range(len(each))]


def selected(batch: Sequence[VisualTokens], members: Sequence[int], index: Tensor) -> list[VisualTokens]:
    """The tokens at `index` (int64 `[streams, kept]`, each row ascending) of some streams of one shape."""
    if len(members) == 1:
        return [batch[members[0]].select(index[0])]
    streams, size = len(members), len(batch[members[0]])
    place = (index + torch.arange(0, streams * size, size, device=index.device)[:, None]).flatten()
    return apart(together(batch, members).select(place), [index.shape[1]] * streams)


def in_steps(scores: Tensor) -> Tensor:
    """Scores in whole steps: those that differ by rounding only, which depends on the device and on how many streams
    are scored together, are equal then, and settled by position."""
    return torch.round(scores * STEPS)


def among_best(scores: Tensor, count: Tensor) -> Tensor:
    """Which of `scores` (`[streams, tokens]`) are among the `count` highest of their stream (`[streams]`), bool; of
    equal scores the earlier token wins. Nothing waits for the device."""
    return ranks.among_best(scores, count, ranks.kernels_on(scores.device.type))


def held(states: Sequence[StreamState], name: str, blank: Tensor) -> Tensor:
    """What the states of some streams hold under a name, `[streams, ...]`; `blank` where that is nothing."""
    return torch.stack([blank if (row := getattr(state, name)) is None else row for state in states])


def earlier(rows: Sequence[Tensor | None], now: Tensor) -> tuple[Tensor, Tensor]:
    """What each of some streams remembers of an earlier frame, `[streams, tokens, dim]`, and which streams do (bool
    `[streams]`); the frames of the others are their own past (`now`)."""
    fits = [row is not None and row.shape == frame.shape for row, frame in zip(rows, now, strict=True)]
    past = [row if fit else frame for row, frame, fit in zip(rows, now, fits, strict=True)]
    # Most often all do, and nothing has to come from the host.
    known = torch.ones(len(fits), dtype=torch.bool, device=now.device)
    if not all(fits):
        known = torch.tensor(fits).to(now.device, non_blocking=True)
    there = [one for one in past if one is not None]
    if len({one.dtype for one in there}) > 1:
        there = [one.float() for one in there]
    return torch.stack(there), known
