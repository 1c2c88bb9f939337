"""What an encoder accelerator fills in."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from onlooker.core.contracts.method import Method
from onlooker.core.contracts.vision import Encoded, VisionTower
from onlooker.core.errors import ModelError
from onlooker.core.state import StreamState

CELLS = 4
"""Cells along each side of a patch, of pictures that are put into states."""


class EncoderAccelerator(Method):
    """Runs a vision tower over one frame of each of several streams, perhaps reusing earlier work."""

    sees_pictures: ClassVar[bool] = False
    """Whether it looks at the picture itself: its brightness, float32 `[rows * CELLS, cols * CELLS]` of the tower's
    grid of patches, is put into `picture` of its states."""

    @abstractmethod
    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """Run the tower. `hidden` is `[streams, tokens, dim]`; row b belongs to `states[b]`, which is updated.

        The result of a stream must not depend on the other streams in the batch.
        """

    def cost(self, tower: VisionTower) -> float:
        """Mean FLOP of a frame as a share of the dense tower's (1.0 = dense), counted, not measured."""
        return 1.0

    def state_bytes(self, layers: int, tokens: int, dim: int, itemsize: int = 2) -> int:
        """Bytes that a stream's state takes in a tower of so many layers on so many tokens of this width."""
        return 0

    def prepare(self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]) -> "Prepared":
        """This method in steps of fixed shape for up to `max_streams` streams of one tower, all made now.

        `like` is any embedded frame (`[tokens, dim]`): its dtype and device are those of all frames to come. `on_step`
        is told the name of every step made. Raises `ModelError` when the method, with its settings, or the tower has no
        such form.
        """
        raise ModelError(
            f"{type(self).__name__} has no steps of fixed shape",
            do="run it without graphs, or choose stc_cacher or full",
        )

    def take_over(self, prepared: "Prepared") -> "Prepared":
        """Steps that were prepared by the same method with other refresh settings, under these settings."""
        return prepared


class Prepared(Protocol):
    """An encoder made ready for one tower: the same results and states as its method, within rounding, but faster."""

    def encode(self, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """As `EncoderAccelerator.encode`. Raises `InputError` for more streams than were prepared for."""
        ...
