"""Read only the last frames, and only when asked: the baseline every memory has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread


@dataclass
class Newest(StreamState):
    """What came last."""

    replaces: ClassVar[bool] = True

    held: list[Unread] = field(default_factory=list)


@dataclass(frozen=True)
class LastFrames(MemoryPolicy):
    """Nothing is read while watching; a question reads the newest frames afresh, as an offline model would."""

    holds_tokens: ClassVar[bool] = True
    takes_pictures: ClassVar[bool] = True

    frames: int = 16
    """Frames (and notes) read at a question."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise InputError(
                "frames must be at least 1", given=str(self.frames), do="for example last_frames:frames=16"
            )

    def new_state(self) -> Newest:
        """Nothing seen yet."""
        return Newest()

    def absorb(self, new: Unread, state: StreamState) -> None:
        """Take in the newest, let the oldest go."""
        assert isinstance(state, Newest)
        state.held = [*state.held, new][-self.frames :]

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """All that is held."""
        assert isinstance(state, Newest)
        return state.held
