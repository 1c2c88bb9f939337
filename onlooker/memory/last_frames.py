"""Read only the last frames, and only when asked: the baseline every memory has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import WindowState, count_new, oldest_beyond, prefix_length


@dataclass(frozen=True)
class LastFrames(MemoryPolicy):
    """Nothing is read while watching; a question reads the newest frames afresh, as an offline model would."""

    rereads: ClassVar[bool] = True

    frames: int = 16
    """Frames read at a question."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise InputError(
                "frames must be at least 1", given=str(self.frames), do="for example last_frames:frames=16"
            )

    def new_state(self) -> WindowState:
        """Counts of the frames kept for reading."""
        return WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Forget frames that are too old to be read."""
        assert isinstance(state, WindowState)
        first = count_new(spans, state)
        return Plan(forget=oldest_beyond(spans, first, state, None, self.frames))

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The newest frames (and the prefix, where there is one)."""
        first = prefix_length(spans)
        return Recall(tuple(span.id for span in [*spans[:first], *spans[first:][-self.frames :]]))
