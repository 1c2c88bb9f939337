"""Encode every frame: the reference that other gates are measured against."""

from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Gate, MemoryView
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class All(Gate):
    """No gate."""

    contract_exceptions: ClassVar[dict[str, str]] = {"engagement": "it lets everything through"}

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def look(self, frame: Frame, memory: MemoryView, state: StreamState) -> float:
        """As it is."""
        return 1.0
