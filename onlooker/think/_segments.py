"""A thought for every segment of the stream: when one ends, and when there is nothing to say about it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.checks import number, whole
from onlooker.core.contracts import Moment, Thinker, Thought
from onlooker.core.events import Noted
from onlooker.core.state import StreamState


@dataclass
class Segment(StreamState):
    """The segment that is being watched; times in stream seconds."""

    since_s: float | None = None
    """Where it begins."""
    changed: float = 0.0
    """Largest share of tokens that a frame of it kept."""
    thought: bool = False
    """Was anything written down before?"""


@dataclass(frozen=True)
class Segments(Thinker):
    """One thought when a segment ends; none when hardly anything changed in it."""

    every_s: float = 8.0
    """Seconds of a segment."""
    least_change: float = 0.0
    """Share of its tokens that some frame must have kept, else nothing is written; 0 writes always."""
    longest: int = 48
    """Most tokens of a thought."""
    prompt: str = "Describe in one short sentence what happened. Write only what is new."
    """What the model is asked at the end of a segment."""

    def __post_init__(self) -> None:
        number("every_s", self.every_s, above=0.0, unit="seconds", do="8 is a short clip")
        number("least_change", self.least_change, least=0.0, most=1.0, do="it is a share")
        whole("longest", self.longest, least=1, most=2048)

    def new_state(self) -> Segment:
        return Segment()

    @abstractmethod
    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """What is asked about one segment."""

    def think(self, moment: Moment, notes: Sequence[Noted], state: Segment) -> Thought | None:
        """At the first frame that is a whole segment behind its beginning."""
        state.since_s = moment.time_s if state.since_s is None else state.since_s
        state.changed = max(state.changed, moment.kept_ratio)
        # Half a millisecond of grace: times of frames are rounded.
        if moment.time_s - state.since_s < self.every_s - 5e-4:
            return None
        since_s, changed = state.since_s, state.changed
        state.since_s, state.changed = moment.time_s, 0.0
        if changed < self.least_change and state.thought:
            return None
        state.thought = True
        return self.thought(since_s, moment.time_s, notes)
