"""Scenes as blocks: the running scene in full, those before it as one small frame each (VideoLLaMB's scene tiling).

"VideoLLaMB" (ICCV 2025, arXiv 2409.01071) cuts a stream where the similarity of neighbouring frames falls deep below
the peak before it; a scene is read as up to 8 evenly spaced frames, and what came before it through memory tokens that
a trained bridge carries on. Here is the cut, in its causal form (only the peak to the left: depth > mean + half a
deviation of all depths so far); in place of the bridge, which has to be trained, stands each past scene's mean frame at
half the resolution. Changed: similarity is that of mean tokens (there: CLS of the tower); of too many scenes, the two
neighbours most alike become one; a scene ends after `longest` frames at the latest.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread
from onlooker.memory._held import HeldState, as_given, in_order, joined, likeness, pooled, tokens_of


@dataclass
class Scenes(HeldState):
    """The running scene, those before it, and what the cut is measured by."""

    running: list[Unread] = field(default_factory=list)
    """Evenly spaced frames of the running scene: every `stride`th of its `length`."""
    stride: int = 1
    length: int = 0
    past: list[Unread] = field(default_factory=list)
    """One small frame for each scene before, and how many frames it had."""
    weights: list[float] = field(default_factory=list)
    last: float | None = None
    peak: float = 0.0
    depths: int = 0
    mean: float = 0.0
    squares: float = 0.0


@dataclass(frozen=True)
class SceneTiling(MemoryPolicy):
    """The running scene in full, past scenes in small."""

    realises: ClassVar[tuple[str, ...]] = ("videollamb",)
    holds_tokens: ClassVar[bool] = True

    scenes: int = 32
    """Past scenes kept."""
    frames: int = 8
    """Frames read of the running scene, evenly spaced, the newest besides."""
    deep: float = 0.5
    """Deviations above the mean depth at which a scene ends."""
    longest: int = 64
    """Frames after which it ends at the latest."""

    def __post_init__(self) -> None:
        if min(self.scenes, self.frames, self.longest) < 1:
            given = f"scenes={self.scenes}, frames={self.frames}, longest={self.longest}"
            raise InputError("scenes have frames", given=given, do="for example scene_tiling:scenes=32,frames=8")

    def new_state(self) -> Scenes:
        """No scene yet."""
        return Scenes()

    def absorb(self, new: Unread, state: StreamState) -> None:
        """A frame of the running scene, or the first of the next."""
        assert isinstance(state, Scenes)
        before = state.newest
        if not state.take(new):
            return
        ends = before is not None and falls(state, likeness(tokens_of(before), tokens_of(new)), self.deep)
        if ends or state.length == self.longest:
            self._close(state)
        if state.length % state.stride == 0:
            state.running = [*state.running, new]
        state.length += 1
        if len(state.running) > self.frames:
            state.running, state.stride = state.running[::2], 2 * state.stride

    def _close(self, state: Scenes) -> None:
        """The running scene becomes one small frame; of too many, the two neighbours most alike become one."""
        rows, cols = tokens_of(state.running[0]).grid
        grid = state.past[-1].content.grid if state.past else ((rows + 1) // 2, (cols + 1) // 2)  # pyright: ignore
        small = [Unread(pooled(tokens_of(one), grid), one.start_s, one.end_s) for one in state.running]
        past, weights = [*state.past, joined(small, [1.0] * len(small))], [*state.weights, float(state.length)]
        if len(past) > self.scenes:
            alike = [likeness(tokens_of(a), tokens_of(b)) for a, b in itertools.pairwise(past)]
            n = alike.index(max(alike))
            past[n : n + 2] = [joined(past[n : n + 2], weights[n : n + 2])]
            weights[n : n + 2] = [sum(weights[n : n + 2])]
        state.past, state.weights, state.running, state.stride, state.length = past, weights, [], 1, 0

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """Past scenes in small, frames of the running one, notes, and the newest frame."""
        assert isinstance(state, Scenes)
        if state.newest is None:
            return state.notes
        like = tokens_of(state.newest)
        running = [one for one in state.running if one.start_s != state.newest.start_s]
        return in_order([*(as_given(one, like) for one in state.past), *running, *state.notes, state.newest])


def falls(state: Scenes, similarity: float, deep: float) -> bool:
    """Whether the similarity of the newest two frames lies deep below the peak before it. `state` is updated."""
    rises = state.last is None or state.last < similarity
    state.peak = similarity if rises else state.peak
    state.last, depth = similarity, state.peak - similarity
    state.depths += 1
    gap = depth - state.mean
    state.mean += gap / state.depths
    state.squares += gap * (depth - state.mean)
    return depth > 0 and depth > state.mean + deep * (state.squares / state.depths) ** 0.5
