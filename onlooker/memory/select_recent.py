"""The newest frames whole, and of the past the few that the question looks at as much (SimpleStream, SelectStream).

The last four frames alone are the bar on today's streaming benchmarks ("SimpleStream", arXiv 2604.02317), and the past
helps where it is a small budget that the question chooses, while the present stays undiluted ("SelectStream", arXiv
2606.16353). Here as one rule over blocks of keys and values: each layer sees the prompt, the first blocks, the newest
ones, and of all others at most `budget`, found by the question's own attention to mean keys, and only such as it looks
at no less than at the newest ones. Changed: SelectStream keeps a graph of latent nodes of fixed size, whose code was
not to be had; the last four of SimpleStream are read afresh (`last_frames`), while these were read as they came.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import WindowState, count_new, highest, levelled, oldest_beyond, prefix_length


@dataclass(frozen=True)
class SelectRecent(MemoryPolicy):
    """A whole present, and a past that has to earn its place."""

    scores_layers: ClassVar[bool] = True

    recent: int = 8
    """Newest blocks that every layer sees."""
    budget: int = 8
    """Most older blocks that a layer sees besides."""
    first: int = 1
    """Oldest blocks that every layer sees besides."""
    bar: float = 1.0
    """How much of the attention that a newest block gets, on average, an older one has to get; 0: none."""
    level: bool = False
    """Take the trend over time out of the past's scores: likeness to a question rises along a stream."""
    max_parked: int | None = None
    """Most blocks parked before the oldest (but the first ones) are forgotten; None for no bound."""

    def __post_init__(self) -> None:
        for name, least in (("recent", 1), ("budget", 0), ("first", 0), ("bar", 0), ("max_parked", 0)):
            if (value := getattr(self, name)) is not None and not value >= least:
                do = f"for example select_recent:{name}={max(1, least)}"
                raise InputError(f"{name} must be at least {least}", given=str(value), do=do)
        if self.max_parked is not None and self.max_parked < self.first:
            given = f"max_parked={self.max_parked}, first={self.first}"
            raise InputError("the first blocks are parked too", given=given, do="allow max_parked at least that many")

    def new_state(self) -> WindowState:
        """Counts of the window and of what is parked."""
        return WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Park what is no longer new; forget the oldest of what is parked beyond its bound."""
        assert isinstance(state, WindowState)
        park = oldest_beyond(spans, count_new(spans, state), state, None, self.recent)
        state.num_parked += len(park)
        surplus = 0 if self.max_parked is None else max(0, state.num_parked - self.max_parked)
        state.num_parked -= surplus
        start = prefix_length(spans) + self.first
        forget = tuple(span.id for span in spans[start : start + surplus])
        return Plan(park=tuple(block for block in park if block not in forget), forget=forget)

    def scoring(self) -> Scoring:
        """Each block's largest share of the attention of a token and head of the whole prompt."""
        return "shares"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prompt, the first blocks, the best of the past that pass the bar, and the newest, in time order."""
        assert scores is not None, "the question chooses by score"
        start = min(len(spans), prefix_length(spans) + self.first)
        end = max(start, len(spans) - self.recent)
        past, now = scores[start:end], scores[end:]
        past = levelled(past, spans[start:end]) if self.level else past
        bar = self.bar * float(now.mean()) if len(now) and self.bar else float("-inf")
        best = [place for place in highest(past, self.budget) if past[place] >= bar]
        places = [*range(start), *(start + place for place in best), *range(end, len(spans))]
        return Recall(tuple(spans[place].id for place in places))
