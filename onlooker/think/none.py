"""Write nothing down: watching only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Moment, Thinker
from onlooker.core.events import Noted
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class NoThinker(Thinker):
    """Nothing is written down: the reference for every thinker."""

    contract_exceptions: ClassVar[dict[str, str]] = {"engagement": "it is the reference that writes nothing"}

    def new_state(self) -> StreamState:
        return StreamState()

    def think(self, moment: Moment, notes: Sequence[Noted], state: StreamState) -> None:
        """Never."""
        return
