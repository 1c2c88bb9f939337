"""Keep the frames at which the stream bends: sharp ones whole, middling ones small (CurveStream).

"CurveStream", arXiv 2603.19571: with F the normalised feature of a frame, a score 1 - cos(F, F-) + 0.2 (1 - cos(d-, d))
of how far the stream has moved and how sharply it turned, d = F - F-; its running mean and deviation; above mean +
deviation a frame is kept whole, above the mean small, else not at all; the first three whole; twenty frames, first in,
first out; the newest is always read whole. Training-free, as there. Changed: F is the mean of the model's own tokens
(there: DINOv2-small); small is a 2 x 2 mean of tokens (there: the frame at 224 pixels); the momentum, which is not
published, is 0.9; a picture that stands still turns by nothing but noise, so that a step shorter than `noise` has no
curvature. It decides behind the tower; the
gate `hinted` spares the tower's work by what it says of the last frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Hint
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread
from onlooker.memory._held import HeldState, as_given, in_order, pooled, tokens_of

MOMENTUM, FIRST = 0.9, 3
SAME = 1e-5
"""A score that is rounding: of a picture that stands still, whose mean and deviation are rounding as well."""


@dataclass
class Curve(HeldState):
    """The last looks, the score's running mean and variance, and the frames kept."""

    looks: Tensor | None = None
    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    kept: list[Unread] = field(default_factory=list)
    verdict: Hint | None = None
    """What became of the newest frame."""


@dataclass(frozen=True)
class CurveStream(MemoryPolicy):
    """A short memory of turning points."""

    realises: ClassVar[tuple[str, ...]] = ("curvestream",)
    holds_tokens: ClassVar[bool] = True

    frames: int = 20
    """Frames kept, the newest not among them."""
    bend: float = 0.2
    """Weight of the curvature against the movement."""
    small: float = 0.0
    """Deviations above the mean from which on a frame is kept, small."""
    clear: float = 1.0
    """Deviations above the mean from which on it is kept whole."""
    noise: float = 0.05
    """Steps of the normalised feature shorter than this do not turn."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.clear < self.small or self.noise <= 0:
            given = f"frames={self.frames}, small={self.small}, clear={self.clear}, noise={self.noise}"
            do = "frames >= 1, small <= clear, noise > 0"
            raise InputError("no such memory of turning points", given=given, do=do)

    def new_state(self) -> Curve:
        """No frame yet."""
        return Curve()

    def absorb(self, new: Unread, state: StreamState) -> None:
        """Score the frame, and keep it whole, small or not."""
        assert isinstance(state, Curve)
        if not state.take(new):
            return
        tokens = tokens_of(new)
        look = normalize(tokens.features.float().mean(0), dim=0)[None]
        state.looks = look if state.looks is None else torch.cat([state.looks, look])[-3:]
        state.count += 1
        state.verdict = "clear" if state.count <= FIRST else "dropped"
        if state.count <= FIRST:
            state.kept = [*state.kept, new][-self.frames :]
            return
        score = curve_score(state.looks, self.bend, self.noise)
        state.mean += (1 - MOMENTUM) * (score - state.mean)
        state.variance += (1 - MOMENTUM) * ((score - state.mean) ** 2 - state.variance)
        deviation = state.variance**0.5
        if score <= SAME:
            return
        if score >= state.mean + self.clear * deviation:
            state.kept, state.verdict = [*state.kept, new][-self.frames :], "clear"
        elif score >= state.mean + self.small * deviation:
            rows, cols = tokens.grid
            half = as_given(Unread(pooled(tokens, ((rows + 1) // 2, (cols + 1) // 2)), new.start_s, new.end_s), tokens)
            state.kept, state.verdict = [*state.kept, half][-self.frames :], "fuzzy"

    def hint(self, state: StreamState) -> Hint | None:
        """Whether the newest frame is kept whole, small or not."""
        assert isinstance(state, Curve)
        return state.verdict

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """The frames that are kept, the notes, and the newest frame whole."""
        assert isinstance(state, Curve)
        if state.newest is None:
            return state.notes
        before = [one for one in state.kept if one.start_s != state.newest.start_s]
        return in_order([*before, *state.notes, state.newest])


def curve_score(looks: Tensor, bend: float, noise: float) -> float:
    """How far the last of three normalised looks (`[3, dim]`) has moved, and how sharply the way there turned."""
    before, step = looks[1] - looks[0], looks[2] - looks[1]
    moved = min(float(before.norm()), float(step.norm())) >= noise
    turn = 1 - float(torch.cosine_similarity(before, step, dim=0)) if moved else 0.0
    return 1 - float(looks[1] @ looks[2]) + bend * turn
