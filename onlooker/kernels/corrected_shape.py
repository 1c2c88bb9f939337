"""What steps of the corrected Cacher by kernels are made of: fields of a stream, shapes and rules."""

from dataclasses import dataclass
from typing import Any

SCALED = ("values", "mlp", "queries", "keys", "attention", "entered", "middle", "attention_sketch", "mlp_sketch")
"""What has a scale a row, in the order of these."""
PLACES: dict[str, Any] = {kind[0].upper(): SCALED.index(kind) for kind in ("queries", "keys", "values")}
"""Of what attention reads, as the kernels call it."""
FIELDS = (*SCALED, "scales", "turn", "tau")
"""Tensors of a stream, in the order of the table of addresses."""
SKETCH = 64
"""Channels of a sketch. With 32 some directions are underestimated for good, and what lies in them is never recomputed:
small signs first (docs/log.md)."""


@dataclass(frozen=True)
class Rules:
    """What the method says of choices."""

    steps: int
    """Steps of change: see `stc_cacher._change`."""
    every: int
    """Frames in which everyone has had a turn to look."""
    salience: float
    flat: float
    """Least salience."""
    either: bool = False
    """Whether what stood out in the reference counts for salience too."""
    attend_every: int = 1
    """Frames in which every unchanged token has had a turn to attend anew."""


@dataclass(frozen=True)
class Shape:
    """What is the same in all layers of a step."""

    streams: int
    tokens: int
    dim: int
    layers: int
    heads: int
    scale: float
    """Of scores."""
    count: int
    """Tokens of a stream that may be computed anew in a layer, whole groups."""
    rules: Rules
    group: int = 1
    pinned: int = 0

    @property
    def units(self) -> int:
        """What is chosen as a whole."""
        return self.tokens // self.group

    @property
    def room(self) -> int:
        """Rows of a stream that may look."""
        turns = -(-self.units // self.rules.every) * self.group
        return min(self.tokens, self.count + self.pinned + turns)

    @property
    def asking(self) -> int:
        """Queries of a stream."""
        if self.rules.attend_every == 1:
            return self.tokens
        return min(self.tokens, self.room + -(-self.units // self.rules.attend_every) * self.group)
