"""Leave what the memory recalled as it is."""

from dataclasses import dataclass

from onlooker.core.contracts import Refiner


@dataclass(frozen=True)
class NoRefiner(Refiner):
    """A question sees what the memory recalled: the reference for every refiner."""
