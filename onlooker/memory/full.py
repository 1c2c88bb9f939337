"""Keep everything: exact, and it grows with the stream."""

from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class Full(MemoryPolicy):
    """Every block stays on the device; a question sees all of them. The reference for every other memory."""

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Keep all."""
        return Plan()
