"""What the store knows about a block that never changes: its size, its inner positions and how far it reaches."""

from dataclasses import dataclass

from torch import Tensor

from onlooker.core.spans import Span

Offset = tuple[int, ...]
"""By how much a block is moved, on each axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One immutable block. Where it lies and which offset a view gives it are the view's data, not the block's."""

    id: int
    num_tokens: int
    extent: int
    """How far the block advances the position counter."""
    positions: Tensor
    """Positions relative to the block's start, int64 `[axes, tokens]`, on the device."""
    clock: int | None = None
    """Where it lies on the first axis of the video that it is a part of (see `Placing`); None: it is part of none."""
    written: Offset = ()
    """Where it was written: its keys are rotated to its positions moved by this, for good."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One block of a store as it is now."""

    span: Span
    block: Block
