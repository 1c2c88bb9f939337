"""The stream that has waited longest is next: all promise the same lag, so this is the order in which they are due."""

from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.contracts import Waiting
from onlooker.schedule._budget import Budgeted, Spent


@dataclass(frozen=True)
class OldestFirst(Budgeted):
    """Earliest due first."""

    def order(self, waiting: Sequence[Waiting], now_s: float, state: Spent) -> list[int]:
        """By the time since when each has waited."""
        return sorted(range(len(waiting)), key=lambda place: (waiting[place].since_s, waiting[place].stream))
