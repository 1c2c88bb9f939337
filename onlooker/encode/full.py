"""The dense tower: every layer on every token of every frame.

The baseline of all encoder methods, and what a recompute ratio of one must equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from onlooker.core.contracts import Encoded, EncoderAccelerator, VisionTower
from onlooker.core.state import StreamState
from onlooker.encode._layer import run_layer
from onlooker.encode._packed import PackedTower, StepPlan, fastest_ways, packed_layers
from onlooker.encode._prepared import PreparedEncoder


@dataclass(frozen=True)
class Full(EncoderAccelerator):
    """Computes everything and remembers nothing."""

    def new_state(self) -> StreamState:
        return StreamState()

    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        taps: dict[int, Tensor] = {}
        for number, layer in enumerate(tower.layers):
            hidden = run_layer(layer, hidden).output
            if number in tower.tap_layers:
                taps[number] = hidden
        return Encoded(hidden, taps, refreshed=(True,) * len(states))

    def prepare(
        self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]
    ) -> PreparedEncoder:
        taps = tuple(sorted(tower.tap_layers))
        packed = PackedTower(packed_layers(tower), StepPlan(), fastest_ways(like), taps)
        return PreparedEncoder(
            tower, packed, lambda tower, hidden, states: [True] * len(states), like, max_streams, on_step
        )
