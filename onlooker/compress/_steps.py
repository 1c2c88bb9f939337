"""Work of fixed shape: what a method does with frames of one shape without waiting for the device.

Launched one by one, the fifty to five hundred small kernels of a method keep the host busy for longer than they take
the device. As a step of fixed shape they are captured once, as a CUDA graph, and replayed (see `kernels.graph`).
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from onlooker.compress._batching import COLUMNS, Run, alike, apart, copies, nothing
from onlooker.core.contracts import Compress, Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join
from onlooker.kernels.graph import CapturedStep, bucket_sizes
from onlooker.kernels.ranks import kept_first, kernels_on


@dataclass(frozen=True)
class Kept:
    """What is kept of the frames of several streams, which lie one stream after the other."""

    tokens: VisualTokens
    """Those that are kept, if there is no order; all that they are chosen of, otherwise."""
    order: Tensor | None = None
    """Places in `tokens`, of each stream those first that are kept, ascending; int64 `[streams, tokens]`."""
    counts: Tensor | None = None
    """How many of them are kept of each stream, int64 `[streams]`; None: all."""
    past: tuple[Tensor, ...] = ()
    """What the streams remember from now on, `[streams, ...]` each."""

    def given(self, streams: int) -> list[VisualTokens]:
        """The tokens of each stream. Waits for the device once, where there are `counts`."""
        if self.order is None:
            return apart(self.tokens, [len(self.tokens) // streams] * streams)
        if self.counts is None:
            return apart(self.tokens.select(self.order.flatten()), [self.order.shape[1]] * streams)
        counts, size = self.counts.tolist(), self.order.shape[1]
        kept_and_left = [number for count in counts for number in (count, size - count)]
        place = torch.cat(self.order.flatten().split_with_sizes(kept_and_left)[::2])
        return apart(self.tokens.select(place), counts)


def masked(tokens: VisualTokens, mask: Tensor, past: tuple[Tensor, ...] = ()) -> Kept:
    """The tokens where `mask` (bool `[streams, tokens]`) is true."""
    return Kept(tokens, *kept_first(mask, kernels_on(mask.device.type)), past)


def chosen(tokens: VisualTokens, index: Tensor, past: tuple[Tensor, ...] = ()) -> Kept:
    """The tokens at `index` (int64 `[streams, kept]`, each row ascending), places in their stream's frame."""
    streams, size = len(index), len(tokens) // len(index)
    return Kept(tokens, index + torch.arange(0, streams * size, size, device=index.device)[:, None], past=past)


class Stepped(Compressor):
    """A compressor that does its work in steps of fixed shape: fill in `step`, and `recalled` and `remembers` where it
    remembers something."""

    remembers: ClassVar[tuple[str, ...]] = ()
    """Of the stream's state, the fields that what a step gives as its past is written to, in order."""

    @abstractmethod
    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """What is kept of so many frames of each of so many streams, all of one shape, stream after stream in `tokens`.

        Nothing here may wait for the device, or come from the host; `past` is what `recalled` gave.
        """

    def recalled(self, tokens: VisualTokens, states: Sequence[StreamState]) -> tuple[Tensor, ...]:
        """What a step has to know of what the streams remember, `[streams, ...]` each, of equal shapes and formats for
        equal frames; states stay as they are."""
        return ()

    def remember(self, states: Sequence[StreamState], kept: Kept) -> None:
        """Write down what a step found, in memory of its own: that of the step is overwritten by the next. Nothing here
        waits for the device, which is at work on the step."""
        for name, rows in zip(self.remembers, kept.past, strict=True):
            for state, row in zip(states, copies(rows.unbind()), strict=True):
                setattr(state, name, row)

    def noted(self, states: Sequence[StreamState], outs: Sequence[VisualTokens]) -> None:
        """Write down what was given out of each stream; `remember` was before."""

    @property
    def step_frames(self) -> int:
        """Frames of a stream that a step sees."""
        return 1

    @property
    def steady(self) -> bool:
        """Whether a step can be captured under these settings."""
        return True

    def plainly(
        self, parts: Sequence[VisualTokens], states: Sequence[StreamState], meanwhile: Callable[[], None] = nothing
    ) -> list[VisualTokens]:
        """A step as it is, over the frames of some streams of one shape."""
        tokens, streams = join(parts), len(states)
        kept = self.step(tokens, streams, len(parts) // streams, self.recalled(tokens, states))
        untouched = kept.tokens is tokens and kept.order is None and len(parts) == streams
        self.remember(states, kept)
        meanwhile()
        outs = list(parts) if untouched else kept.given(streams)
        self.noted(states, outs)
        return outs

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """One frame of one stream."""
        return self.compress_streams([tokens], [state])[0]

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """One frame of each stream, those of one shape together."""
        return self.passed(batch, states, self.plainly)

    def passed(self, batch: Sequence[VisualTokens], states: Sequence[StreamState], run: Run) -> list[VisualTokens]:
        """One frame of each stream, by a step that `run` does."""
        return by_shape(batch, states, run)

    def prepare(
        self, like: VisualTokens, most_streams: int, on_step: Callable[[str], None], capture: bool = True
    ) -> Compress:
        """Frames of this shape by captured steps, others as they are. Without `capture` over the steps' buffers too; on
        a CPU, where there is nothing to capture, as it is."""
        if not self.steady or (capture and not like.features.is_cuda):
            return self.compress_streams
        steps = CapturedSteps(self, [like] * self.step_frames, most_streams, on_step, capture)
        return partial(self.passed, run=steps.run)


def by_shape(batch: Sequence[VisualTokens], states: Sequence[StreamState], run: Run) -> list[VisualTokens]:
    """One frame of each stream, those of one shape together; frames without tokens stay as they are."""
    outs = list(batch)
    for members in alike(batch):
        given = run([batch[i] for i in members], [states[i] for i in members])
        for i, out in zip(members, given, strict=True):
            outs[i] = out
    return outs


class CapturedSteps:
    """A method's steps for so many streams, over buffers that all of them share."""

    def __init__(
        self,
        method: Stepped,
        like: Sequence[VisualTokens],
        most_streams: int,
        on_step: Callable[[str], None],
        capture: bool = True,
    ) -> None:
        """`like` are the frames of one stream. Raises `ModelError` where a step waits for the device."""
        self._method, self._like, self._forms = method, [replace(one, whole={}) for one in like], {}
        flat = join(self._like * most_streams).owned()
        self._columns = {name: getattr(flat, name) for name in COLUMNS} | dict(flat.extras)
        self._past = method.recalled(flat, [method.new_state() for _ in range(most_streams)])
        self._steps: dict[int, CapturedStep] = {}
        self._shown: dict[int, VisualTokens] = {}
        pool = CapturedStep.new_pool(flat.features.device)
        for size in reversed(bucket_sizes(most_streams)):
            self._shown[size] = shown = self._tokens(size)
            rows = [*(getattr(shown, name) for name in COLUMNS), *shown.extras.values()]
            inputs, name = (*rows, *(one[:size] for one in self._past)), f"compress {size}"
            self._steps[size] = CapturedStep(name, self._function(size), inputs, pool=pool, capture=capture)
            on_step(name)

    def run(
        self, parts: Sequence[VisualTokens], states: Sequence[StreamState], meanwhile: Callable[[], None] = nothing
    ) -> list[VisualTokens]:
        """As `Stepped.plainly`, by a captured step; plainly where none fits."""
        streams, frames = len(states), len(self._like)
        size = next((size for size in sorted(self._steps) if size >= streams), None)
        if size is None or len(parts) != streams * frames or not self._fits(parts[0]):
            return self._method.plainly(parts, states, meanwhile)
        with torch.no_grad():
            padded = [*parts, *list(parts[-frames:]) * (size - streams)]
            for name, rows in zip(self._columns, self._steps[size].inputs, strict=False):
                own = name in COLUMNS
                torch.cat([getattr(part, name) if own else part.extras[name] for part in padded], out=rows)
            past = self._method.recalled(self._shown[size], [*states, *[states[-1]] * (size - streams)])
            for own, new in zip(self._past, past, strict=True):
                own[:size].copy_(new)
            outputs = self._steps[size].replay()
            kept = self._own(self._forms[size](outputs), parts, streams, size)
            self._method.remember(states, kept)
            meanwhile()
            outs = kept.given(streams)
        self._method.noted(states, outs)
        return outs

    def _function(self, size: int) -> Callable[..., tuple[Tensor, ...]]:
        def run(*given: Tensor) -> tuple[Tensor, ...]:
            kept = self._method.step(self._shown[size], size, len(self._like), given[len(self._columns) :])
            made = [getattr(kept.tokens, name) for name in COLUMNS] + [*kept.tokens.extras.values()]
            found = [one for one in (kept.order, kept.counts) if one is not None]
            self._forms[size] = lambda outputs: _built(kept, outputs)
            return (*made, *found, *kept.past)

        return run

    def _tokens(self, size: int) -> VisualTokens:
        """Those of so many streams in the buffers."""
        count = size * sum(map(len, self._like))
        rows = {name: value[:count] for name, value in self._columns.items()}
        like = self._like[0]
        columns: dict[str, Any] = {name: rows[name] for name in COLUMNS}
        return VisualTokens(**columns, grid=like.grid, extras={name: rows[name] for name in like.extras})

    def _fits(self, part: VisualTokens) -> bool:
        like = self._like[0]
        return (
            part.grid == like.grid
            and part.extras.keys() == like.extras.keys()
            and all(
                (_column(part, name).shape, _column(part, name).dtype) == (_column(like, name).shape, value.dtype)
                for name, value in self._columns.items()
            )
        )

    def _own(self, kept: Kept, parts: Sequence[VisualTokens], streams: int, size: int) -> Kept:
        """Without padding; where nothing is chosen of the tokens any more, in memory of its own."""
        names = parts[0].whole
        whole = {name: torch.cat([part.whole[name] for part in parts]) for name in names}
        tokens = replace(kept.tokens, whole=whole)
        if kept.order is None:
            each = slice(len(tokens) // size * streams)
            rows = {name: getattr(tokens, name)[each].clone() for name in COLUMNS}
            extras = {name: value[each].clone() for name, value in tokens.extras.items()}
            tokens = replace(tokens, **rows, extras=extras)
        order, counts = (None if one is None else one[:streams] for one in (kept.order, kept.counts))
        return Kept(tokens, order, counts, tuple(one[:streams] for one in kept.past))


def _column(part: VisualTokens, name: str) -> Tensor:
    return getattr(part, name) if name in COLUMNS else part.extras[name]


def _built(kept: Kept, outputs: Sequence[Tensor]) -> Kept:
    """What a step gives, of this form, with other tensors in it."""
    left = iter(outputs)
    rows = {name: next(left) for name in COLUMNS}
    extras = {name: next(left) for name in kept.tokens.extras}
    order, counts = (None if one is None else next(left) for one in (kept.order, kept.counts))
    return Kept(replace(kept.tokens, **rows, extras=extras), order, counts, tuple(left))
