"""What a response policy sees and fills in."""

from abc import abstractmethod
from dataclasses import dataclass

from onlooker.core.contracts.method import Method
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class Moment:
    """What a response policy sees of the newest frame of one stream."""

    time_s: float
    kept_ratio: float
    """Share of the frame's visual tokens that the compressor kept."""
    recomputed_ratio: float | None
    """Share of the tower's tokens that the encoder computed anew; None unless the session traces its work."""
    speak_probability: float | None = None
    """The model's own probability of yes to the standing question, where a method needs it and it was asked for."""


class ResponsePolicy(Method):
    """Decides, frame by frame, whether the model should speak by itself. Never generates."""

    @abstractmethod
    def should_speak(self, moment: Moment, state: StreamState) -> bool:
        """Is now a moment to speak? `state` is updated."""
