"""`sliding_window` without sinks: the prompt leaves too, once the window is full."""

from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState
from onlooker.memory.sliding_window import SlidingWindow


@dataclass(frozen=True)
class NoSinks(SlidingWindow):
    """The newest blocks and nothing else."""

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Forget what no longer fits, and what the window began behind."""
        gone = super().plan(spans, state).forget
        lead = tuple(span.id for span in spans[:1] if span.kind == "prefix")
        return Plan(forget=(*lead, *gone) if gone else ())
