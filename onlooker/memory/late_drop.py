"""Keep everything, and look at the video in the middle layers only (Map the Flow).

Kim et al., "Map the Flow: Revealing Hidden Pathways of Information in VideoLLMs", ICLR 2026 (arXiv 2510.13251): video
reaches the question in layers 6 to 20 of 32; the edges from the video in the other layers may go. Here a question sees,
outside the layers that look, the prompt and the notes and nothing else: the keys of the video are not even gathered
there, and the prompt lies right before the question. Changed: edges inside the video are left alone, since frames were
read before there was a question. Which layers of a model look is measured by `onlooker bench flow`. What waits to be
remembered is read with the question, in all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Recall, Span
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class LateDrop(MemoryPolicy):
    """A question sees the video in some layers only."""

    layered: ClassVar[bool] = True
    realises: ClassVar[tuple[str, ...]] = ("map_the_flow",)
    contract_exceptions: ClassVar[dict[str, str]] = dict.fromkeys(
        ("engagement", "bounded_memory"), "it keeps everything, and saves the reading of it"
    )

    first: float = 0.0
    """Share of the layers below the first that sees the video."""
    last: float = 0.65
    """Share of the layers below the first that sees it no more."""

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= 1:
            given = f"first={self.first}, last={self.last}"
            raise InputError("some layers have to see the video", given=given, do="0 <= first < last <= 1")

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def recall_layer(self, layer: int, num_layers: int, spans: Sequence[Span], state: StreamState) -> Recall:
        """Everything where the layer looks (at least one does); else all but the video."""
        begin = min(int(self.first * num_layers), num_layers - 1)
        looks = begin <= layer < max(begin + 1, round(self.last * num_layers))
        return Recall(tuple(span.id for span in spans if looks or span.kind != "vision"))
