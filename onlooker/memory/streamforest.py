"""The newest frame whole, the last ones fine, and all before as events that grow together (StreamForest).

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
from onlooker.core.tokens import join
from onlooker.core.unread import Unread
from onlooker.memory._held import HeldState, in_order, likeness, tokens_of, tome

FINE, COARSE = 128 / 729, 64 / 729


Event = tuple[Unread, int, int, float]
"""Its tokens, how many frames they are worth, of how many events it grew, and its mean time."""


@dataclass
class Forest(HeldState):
    """Short memory, with the tokens that its frames had, and events."""

    short: list[Unread] = field(default_factory=list)
    full: list[int] = field(default_factory=list)
    events: list[tuple[Unread, int, int, float]] = field(default_factory=list)


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
        """The frame before goes to the short memory, its first to an event; events that are too large grow together."""
        assert isinstance(state, Forest)
        before = state.newest
        if not state.take(new) or before is None:
            return
        tokens = tokens_of(before)
        state.short = [*state.short, replace(before, content=tome(tokens, round(FINE * len(tokens))))]
        state.full = [*state.full, len(tokens)]
        if len(state.short) < self.short_frames + self.batch:
            return
        frames = [tokens_of(one) for one in state.short]
        alike = [likeness(*frames[n : n + 2]) for n in range(self.batch)]
        cut = alike.index(min(alike)) + 1
        end = next((n for n in range(1, cut) if frames[n].grid != frames[0].grid), cut)
        parts = [tome(one, round(COARSE * full)) for one, full in zip(frames[:end], state.full[:end], strict=True)]
        time_s = sum(one.start_s for one in state.short[:end]) / end
        event = Unread(join(parts), state.short[0].start_s, state.short[end - 1].end_s)
        state.events = [*state.events, (event, end, 1, time_s)]
        state.short, state.full = state.short[end:], state.full[end:]
        while sum(frames for _, frames, _, _ in state.events) > self.event_frames:
            state.events = grown(state.events, new.start_s, self.weights)

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """Events, short memory, notes and the newest frame."""
        assert isinstance(state, Forest)
        trees = [
            replace(event, content=tokens, place_s=min(max(float(tokens.time_s[0]), event.start_s), event.end_s))
            for event, _, _, _ in state.events
            for _, tokens in tokens_of(event).by_frame()
        ]
        newest = [] if state.newest is None else [state.newest]
        return in_order([*trees, *state.short, *state.notes, *newest])


def grown(events: list[Event], now_s: float, weights: Sequence[float]) -> list[Event]:
    """One event fewer: the neighbours of least penalty are one, of half their frames; else the oldest is gone."""
    most = max(merges for _, _, merges, _ in events)
    fits = [n for n in range(len(events) - 1) if len({tokens_of(event).grid for event, *_ in events[n : n + 2]}) == 1]
    if not fits:
        return events[1:]
    n = min(fits, key=lambda n: penalty(events[n], events[n + 1], now_s, most, weights))
    (one, a, grew, time_s), (other, b, other_grew, other_s) = events[n : n + 2]
    both, count = join([tokens_of(one), tokens_of(other)]), -(-(a + b) // 2)
    event = replace(one, content=tome(both, round(len(both) * count / (a + b))), end_s=other.end_s)
    return [*events[:n], (event, count, grew + other_grew, (time_s * a + other_s * b) / (a + b)), *events[n + 2 :]]


def penalty(one: Event, other: Event, now_s: float, most: int, weights: Sequence[float]) -> float:
    """Of making one event of two: for what is unlike, what is new, and what grew of many (`most` at most)."""
    features = [normalize(tokens_of(event).features.float(), dim=-1) for event, *_ in (one, other)]
    unlike = 1 - float((features[0] @ features[1].T).amax(dim=1).mean())
    age, often = (one[3] + other[3]) / 2 / max(now_s, 1e-9), (one[2] + other[2]) / 2 / most
    return weights[0] * unlike + weights[1] * age + weights[2] * often
