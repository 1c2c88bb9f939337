"""Who goes next: the one place where the next step of the engine is put together."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Waits(Protocol):
    """A stream with a frame waiting or not."""

    @property
    def is_waiting(self) -> bool:
        """Whether a frame waits."""
        ...

    @property
    def waits_since_s(self) -> float:
        """Since when the stream has had a frame waiting, whether that frame or an older one it took the place of."""
        ...


Waiting = TypeVar("Waiting", bound=Waits)
Asked = TypeVar("Asked")


class Turns:
    """Every step moves all questions on by a pass and takes one frame of each of a few streams, longest waiting first.

    A step with questions takes so few frames that it lasts about `step_s` seconds, judged by the steps before: that is
    the time between two words of an answer. A stream that waits longest is never passed over, so none starves.
    """

    def __init__(self, most_frames: int = 32, step_s: float = 0.2) -> None:
        self._most_frames, self._step_s = most_frames, step_s
        self._frame_s = step_s / 8

    def choose(self, streams: Iterable[Waiting], questions: Sequence[Asked]) -> tuple[list[Waiting], list[Asked]]:
        """The streams whose next frame is taken in, and the questions that are moved on."""
        waiting = sorted((stream for stream in streams if stream.is_waiting), key=lambda stream: stream.waits_since_s)
        few = max(1, min(self._most_frames, int(self._step_s / self._frame_s)))
        return waiting[: few if questions else min(2 * few, self._most_frames)], list(questions)

    def note(self, num_frames: int, seconds: float) -> None:
        """Learn what frames cost from a step that was made."""
        if num_frames:
            self._frame_s += 0.1 * (max(seconds, 1e-4) / num_frames - self._frame_s)
