"""Few tokens a frame, parked in four bits, found by the cosine of their mean keys (StreamingTOM).

"StreamingTOM", CVPR 2026 (arXiv 2510.18269), its second half, OQM: a group is the 50 tokens that CTR leaves of a frame
(`compressor=ctr`, its first half); groups are written once, in unsigned 4 bits by channel, and never again (`kv`:
`host=int4`); each layer looks for the question's mean query among the groups' mean keys by cosine, and sees the best
ones up to 12,544 tokens, in time order; while watching, the newest 4,800 tokens are seen. Training-free. Changed:

- keys and queries are compared before rotation, and what was found is laid out at packed positions, where the published
  code's groups share overlapping ones once a stream is longer than its window;
- the window is seen as it was computed, not decoded from 4 bits: groups are parked when they leave it;
- the newest groups are always part of the answer; groups are taken while they fit, so that they may differ in size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import WindowState, count_new, oldest_beyond, prefix_length


@dataclass(frozen=True)
class StreamingTOM(MemoryPolicy):
    """Recall groups by likeness, up to so many tokens; for `--compressor ctr --kv host=int4`."""

    scores_layers: ClassVar[bool] = True

    recall_tokens: int = 12544
    """Most tokens behind the prompt that a layer sees."""
    recent: int = 1
    """Newest groups that every layer sees, among them."""
    window_tokens: int = 4800
    """Most tokens seen behind the prompt while watching; older groups are parked."""

    def __post_init__(self) -> None:
        for name, least in (("recall_tokens", 1), ("recent", 0), ("window_tokens", 1)):
            if getattr(self, name) < least:
                given, do = f"{name}={getattr(self, name)}", "for example streamingtom:recall_tokens=12544"
                raise InputError(f"{name} must be at least {least}", given=given, do=do)

    def new_state(self) -> WindowState:
        """Counts of the window."""
        return WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Park what leaves the window."""
        assert isinstance(state, WindowState)
        return Plan(park=oldest_beyond(spans, count_new(spans, state), state, self.window_tokens, None))

    def scoring(self) -> Scoring:
        """The cosine of each block's mean key and the bare question's mean query."""
        return "cosine"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prompt, the newest groups, and of the others by falling score those that still fit, in time order."""
        assert scores is not None, "groups are found by score"
        lead = prefix_length(spans)
        end = max(lead, len(spans) - self.recent)
        room = self.recall_tokens - sum(span.num_tokens for span in spans[end:])
        seen = [*range(lead), *range(end, len(spans))]
        # A stable sort: of equal scores the older group is recalled, on every device.
        for place in scores[lead:end].argsort(descending=True, stable=True).tolist():
            room -= spans[lead + place].num_tokens
            if room < 0:
                break
            seen.append(lead + place)
        return Recall(tuple(spans[place].id for place in sorted(seen)))
