"""What a schedule sees and fills in."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.contracts.method import Method
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stream that has a frame which could be taken now."""

    stream: int
    """Its number in the scheduler; none is given twice."""
    since_s: float
    """Since when its turn has been waited for, on the scheduler's clock. A newer frame in the place of one that waited
    does not lose its turn."""
    frame: Frame
    """The frame."""


class SchedulePolicy(Method):
    """Decides whose frame is looked at next, among all streams of a scheduler.

    The one kind of method whose state spans streams: a scheduler has one, and owns it. Frames that are not chosen wait;
    a newer one takes their place, which is counted (`dropped`), as under any overload.
    """

    @abstractmethod
    def choose(self, waiting: Sequence[Waiting], room: int, now_s: float, state: StreamState) -> list[int]:
        """Places in `waiting` of the streams whose frames are taken now, at most `room`, each once; `state` is updated.

        `now_s` is the scheduler's clock. Nobody may be passed over for ever. Must not keep or change a picture.
        """

    def left(self, stream: int, state: StreamState) -> None:
        """A stream has ended: forget it, or the state grows with every stream that ever was."""
        return

    def rest_s(self, now_s: float, state: StreamState) -> float:
        """Seconds until frames may be chosen again, when none of those that wait were."""
        return 0.0

    @property
    def most_fps(self) -> float | None:
        """Frames a second that it chooses at most, of all streams together; None for as many as there is time for."""
        return None
