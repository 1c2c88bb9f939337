"""The dense tower: every layer on every token of every frame.

The baseline of all encoder methods, and what a recompute ratio of one must equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from onlooker.core.contracts import Encoded, EncoderAccelerator, VisionTower
from onlooker.core.state import StreamState
from onlooker.encode._layer import run_layer


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
