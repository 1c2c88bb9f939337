"""Watch through a window, park everything older, and recall per layer what the question looks for (ReKV).

Di et al., "Streaming Video Question-Answering with In-context Video KV-Cache Retrieval", ICLR 2025 (arXiv 2503.00540).
As there: one block per frame; its key is the mean raw key; the question's mean raw query scores it by dot product,
layer by layer, on a first pass over the bare question; the top k are laid out in time order at packed positions.
Changed:

- the newest blocks are always part of the answer (the paper's code leaves the local window out, so that the last
  seconds are invisible unless they are retrieved);
- scores use folded query heads: the same numbers from a smaller index, since key heads are only repeated;
- while watching, the prefix sits right before the window at its true distance, not all of it at one capped distance;
- blocks are parked when they leave the window instead of being held twice; the parked ones may be bounded;
- no averaging over neighbouring blocks, and no block cache on the device.

Settings beyond the paper are off unless asked for. `first` keeps the oldest blocks in every answer: a
model learns to rest its attention on the start of a stream, and may call things seen that never were when the start is
gone (the sinks of StreamingLLM, arXiv 2309.17453, as blocks). `score=shares` asks with the whole prompt, token by token
and head by head, of the same mean keys: what looks for the evidence may be one head of one token behind the question.
A third, `level`, takes the trend over time out of the scores before they are ranked. `thin` spreads what a bound on
parked blocks leaves over all of the past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import ThinState, WindowState, highest, levelled, park_and_forget, prefix_length


@dataclass(frozen=True)
class ReKV(MemoryPolicy):
    """Retrieve parked blocks by the question's own queries."""

    realises: ClassVar[tuple[str, ...]] = ("rekv",)
    scores_layers: ClassVar[bool] = True

    topk: int = 64
    """Blocks each layer recalls by score."""
    recent: int = 4
    """Newest blocks that every layer sees besides."""
    first: int = 0
    """Oldest blocks that every layer sees besides."""
    score: Literal["mean", "shares"] = "mean"
    """What ranks a block: its mean key against the question's mean query, or its largest share of attention."""
    level: bool = False
    """Take the trend over time out of the scores: likeness to a question rises along a stream."""
    window_tokens: int = 15000
    """Most tokens seen behind the prefix while watching; older blocks are parked."""
    max_parked: int | None = None
    """Most blocks parked before some (but never the first ones) are forgotten; None for no bound."""
    thin: bool = False
    """Forget so that what stays lies about evenly over the past, instead of the oldest."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("topk", self.topk, 0),
            ("recent", self.recent, 0),
            ("first", self.first, 0),
            ("window_tokens", self.window_tokens, 1),
            ("max_parked", self.max_parked, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}", given=str(value), do=f"for example rekv:{name}=64")
        if self.max_parked is not None and self.max_parked < self.first:
            given = f"max_parked={self.max_parked}, first={self.first}"
            raise InputError("the first blocks are parked too", given=given, do="allow max_parked at least that many")
        if self.score not in ("mean", "shares"):
            raise InputError("there is no such score", given=f"score={self.score}", do="mean or shares")

    def new_state(self) -> WindowState:
        """Counts of the window and of what is parked."""
        return ThinState() if self.thin else WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Park what leaves the window; forget some of what is parked beyond its bound."""
        assert isinstance(state, WindowState)
        return park_and_forget(spans, state, self.window_tokens, self.max_parked, self.first)

    def scoring(self) -> Scoring:
        """As the setting says."""
        return self.score

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prefix, the first blocks, the top k by score, and the newest blocks, in time order."""
        assert scores is not None, "ReKV chooses by score"
        start = min(len(spans), prefix_length(spans) + self.first)
        end = max(start, len(spans) - self.recent)
        past = levelled(scores[start:end], spans[start:end]) if self.level else scores[start:end]
        places = [*range(start), *(start + place for place in highest(past, self.topk)), *range(end, len(spans))]
        return Recall(tuple(spans[place].id for place in places))
