"""Events as trees that grow together: the newest frame whole, the last ones fine, all before as merged events (StreamForest).

"StreamForest", NeurIPS 2025 (arXiv 2509.24871), whose update of the memory has no parameters: a frame that is no longer
the newest is merged to 128 of 729 tokens (ToMe) and joins a short memory of 18; when 8 more have come, the first frames
up to the deepest fall of similarity among the first 8 become an event of 64 tokens a frame; while events hold more than
80 frames' worth, the neighbours of least penalty become one of half their frames: 0.4 (1 - mean best similarity of
tokens) + 0.2 (mean time / now) + 0.4 (mean merge count / largest). So similar, old and rarely merged ones go first. The
whole is read at a question. Changed: features are the model's tokens behind the projector, without added positions;
token counts are shares of the frame; a frame's tokens are read at the time of its event's frame; events of pictures of
different sizes stay apart, and the oldest goes where no two can be one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join
from onlooker.core.unread import Unread
from onlooker.memory._held import HeldState, in_order, likeness, tokens_of, tome

FINE, COARSE = 128 / 729, 64 / 729


@dataclass
class Forest(HeldState):
    """Short memory, and events with their frames, merge counts, mean times and tokens a frame."""

    short: list[Unread] = field(default_factory=list)
    events: list[Unread] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    merges: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    full: list[int] = field(default_factory=list)
    """Tokens of a whole frame, for each that has not become an event yet."""


@dataclass(frozen=True)
class StreamForest(MemoryPolicy):
    """Events that merge by likeness, age and how often they were merged."""

    holds_tokens: ClassVar[bool] = True

    short_frames: int = 18
    """Frames of the short memory."""
    batch: int = 8
    """Frames more at which its first become an event."""
    event_frames: int = 80
    """Frames of all events together."""
    weights: tuple[float, ...] = (0.4, 0.2, 0.4)
    """Of unlikeness, time and merge count in the penalty."""

    def __post_init__(self) -> None:
        if min(self.short_frames, self.batch) < 1 or self.event_frames < self.batch or len(self.weights) != 3:
            given = f"short_frames={self.short_frames}, batch={self.batch}, event_frames={self.event_frames}"
            raise InputError("no such forest", given=given, do="event_frames >= batch >= 1, and three weights")

    def new_state(self) -> Forest:
        """Nothing seen."""
        return Forest()

    def absorb(self, new: Unread, state: StreamState) -> None:
        """The frame before goes to the short memory, its first to an event, and events that are too many grow together."""
        assert isinstance(state, Forest)
        before = state.newest
        if not state.take(new) or before is None:
            return
        tokens = tokens_of(before)
        fine = replace(before, content=tome(tokens, round(FINE * len(tokens))))
        state.short, state.full = [*state.short, fine], [*state.full, len(tokens)]
        if len(state.short) < self.short_frames + self.batch:
            return
        alike = [likeness(tokens_of(state.short[n]), tokens_of(state.short[n + 1])) for n in range(self.batch)]
        end = alike.index(min(alike)) + 1
        some = [
            tome(tokens_of(one), round(COARSE * full)) for one, full in zip(state.short[:end], state.full, strict=False)
        ]
        self._plant(state, state.short[:end], some)
        state.short, state.full = state.short[end:], state.full[end:]
        while sum(state.frames) > self.event_frames:
            self._merge(state, new.start_s)

    def _plant(self, state: Forest, frames: Sequence[Unread], some: Sequence[VisualTokens]) -> None:
        """An event for each run of frames of one size, at most one as a rule."""
        for n, (one, tokens) in enumerate(zip(frames, some, strict=True)):
            if n and tokens.grid == some[n - 1].grid:
                last, count = state.events[-1], state.frames[-1]
                content = join([tokens_of(last), tokens])
                state.events = [*state.events[:-1], replace(last, content=content, end_s=one.end_s)]
                state.times = [*state.times[:-1], (state.times[-1] * count + one.start_s) / (count + 1)]
                state.frames = [*state.frames[:-1], count + 1]
                continue
            state.events, state.frames = [*state.events, replace(one, content=tokens)], [*state.frames, 1]
            state.merges, state.times = [*state.merges, 1], [*state.times, one.start_s]

    def _merge(self, state: Forest, now_s: float) -> None:
        """The neighbours of least penalty become one event of half their frames; else the oldest goes."""
        pairs = [n for n in range(len(state.events) - 1) if _grid(state.events[n]) == _grid(state.events[n + 1])]
        lists = (state.events, state.frames, state.merges, state.times)
        if not pairs:
            state.events, state.frames, state.merges, state.times = (list(one[1:]) for one in lists)  # pyright: ignore
            return
        n = min(pairs, key=lambda n: penalty(state, n, now_s, self.weights))
        (one, other), (a, b) = state.events[n : n + 2], state.frames[n : n + 2]
        both, count = join([tokens_of(one), tokens_of(other)]), -(-(a + b) // 2)
        content = tome(both, round(len(both) * count / (a + b)))
        event = replace(one, content=content, end_s=other.end_s)
        time_s = (state.times[n] * a + state.times[n + 1] * b) / (a + b)
        made = (event, count, sum(state.merges[n : n + 2]), time_s)
        state.events, state.frames, state.merges, state.times = (  # pyright: ignore
            [*kept[:n], new, *kept[n + 2 :]] for kept, new in zip(lists, made, strict=True)
        )

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """Events, short memory, notes and the newest frame."""
        assert isinstance(state, Forest)
        trees = [
            replace(event, content=tokens, place_s=min(max(float(tokens.time_s[0]), event.start_s), event.end_s))
            for event in state.events
            for _, tokens in tokens_of(event).by_frame()
        ]
        newest = [] if state.newest is None else [state.newest]
        return in_order([*trees, *state.short, *state.notes, *newest])


def penalty(state: Forest, n: int, now_s: float, weights: Sequence[float]) -> float:
    """Of merging event `n` with the next: of what is unlike, of what is new, and of what was merged often."""
    one, other = (normalize(tokens_of(event).features.float(), dim=-1) for event in state.events[n : n + 2])
    unlike = 1 - float((one @ other.T).amax(dim=1).mean())
    age = sum(state.times[n : n + 2]) / 2 / max(now_s, 1e-9)
    often = sum(state.merges[n : n + 2]) / 2 / max(state.merges)
    return weights[0] * unlike + weights[1] * age + weights[2] * often


def _grid(event: Unread) -> tuple[int, int]:
    return tokens_of(event).grid
