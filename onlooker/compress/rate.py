"""Hold tokens a second: moves the threshold of a method that keeps what changed: `rate(dtd):tokens_per_s=40`.

A threshold means something else on every model and in every scene; what a live stream can afford is a rate. The
logarithm of the threshold goes up by `gain` times what was kept beyond the rate, as a share of the frame, and down by
what was kept short of it. So what was kept in excess, added up, is never more than the way that the threshold went, and
the long-run rate is the one that is asked for, whatever the stream does, while the threshold is within its bounds
(Angelopoulos et al., "Conformal PID Control for Time Series Prediction", 2023, section 2, for quantiles of a stream).
A scene that stands still keeps less: there is nothing to keep.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch

from onlooker.compress._batching import Batched
from onlooker.compress.dtd import DTD
from onlooker.core.checks import number
from onlooker.core.contracts import Compress, Compressor, VideoModel
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

BOUNDS = (1e-4, 2.0)
"""Changes that a threshold stays between."""


@dataclass
class RateState(StreamState):
    """The method's own state, whose threshold is moved, and when the stream was last looked at."""

    inner: StreamState = field(default_factory=StreamState)
    time_s: float | None = None


@dataclass(frozen=True)
class Rate(Batched):
    """A threshold method at a rate."""

    whole_frames: ClassVar[bool] = True

    inner: Compressor = field(default_factory=DTD)
    """A method that keeps tokens from some change on (it and its state have `least_change`), such as dtd."""
    tokens_per_s: float = 40.0
    """Tokens of a stream to keep in a second of it, on average."""
    gain: float = 0.5
    """How fast the threshold follows: its logarithm's step for a whole frame too many."""

    def __post_init__(self) -> None:
        number("tokens_per_s", self.tokens_per_s, above=0.0, do="tokens of a stream a second, such as 40")
        number("gain", self.gain, above=0.0, most=100.0, do="such as 0.5")
        fixed = getattr(self.inner, "keep_ratio", None) is not None
        if fixed or self.inner.lookahead or not hasattr(self.inner.new_state(), "least_change"):
            given = type(self.inner).__name__ + (" with a fixed share" if fixed else "")
            raise InputError("only a method with a threshold can be held at a rate", given=given, do="use rate(dtd)")

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - that of the inner one
        """What the method within needs."""
        return self.inner.needs

    def check(self, model: VideoModel) -> None:
        """So that an error names the method within."""
        self.inner.check(model)

    def less(self) -> Self:
        """Half the rate."""
        return replace(self, tokens_per_s=self.tokens_per_s / 2)

    def new_state(self) -> RateState:
        """That of the method within, at its own threshold."""
        return RateState(self.inner.new_state())

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """One frame of each stream, as the method within does; waits for the device once for their times."""
        return self._pass(batch, states, self.inner.compress_streams)

    def prepare(
        self, like: VisualTokens, most_streams: int, on_step: Callable[[str], None], capture: bool = True
    ) -> Compress:
        """By the steps of the method within."""
        return partial(self._pass, run=self.inner.prepare(like, most_streams, on_step, capture))

    def _pass(self, batch: Sequence[VisualTokens], states: Sequence[StreamState], run: Compress) -> list[VisualTokens]:
        mine = [state for state in states if isinstance(state, RateState)]
        kept = run(batch, [state.inner for state in mine])
        there = [n for n, tokens in enumerate(batch) if len(tokens)]
        times = torch.stack([batch[n].time_s[0] for n in there]).tolist() if there else []
        for n, now in zip(there, times, strict=True):
            state = mine[n]
            inner: Any = state.inner  # it has a threshold: that was looked for when the method was made
            if state.time_s is not None:
                asked = min(1.0, self.tokens_per_s * (now - state.time_s) / len(batch[n]))
                excess = len(kept[n]) / len(batch[n]) - asked
                before = _threshold(self.inner) if inner.least_change is None else inner.least_change
                inner.least_change = min(max(before * math.exp(self.gain * excess), BOUNDS[0]), BOUNDS[1])
            state.time_s = now
        return kept


def _threshold(method: Any) -> float:
    """The method's own threshold."""
    return method.least_change
