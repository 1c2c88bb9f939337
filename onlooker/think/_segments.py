"""A thought for every segment of the stream: when one ends, and when there is nothing to say about it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.checks import number, whole
from onlooker.core.contracts import FRAME_SIGNALS, Moment, ResponsePolicy, Thinker, Thought, VideoModel
from onlooker.core.errors import InputError
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
    called: bool = False
    """Did `when` speak in it?"""
    calling: StreamState | None = None
    """What `when` remembers."""


@dataclass(frozen=True)
class Segments(Thinker):
    """One thought when a segment ends; none when hardly anything changed in it, or nobody called for one."""

    every_s: float = 8.0
    """Seconds of a segment."""
    least_change: float = 0.0
    """Share of its tokens that some frame must have kept, else nothing is written; 0 writes always."""
    longest: int = 48
    """Most tokens of a thought."""
    prompt: str = "Describe in one short sentence what happened. Write only what is new."
    """What the model is asked at the end of a segment."""
    when: ResponsePolicy | None = None
    """A response policy, in brackets: only segments in which it speaks are written about; none: all are."""

    def __post_init__(self) -> None:
        if self.when is not None and (asked := sorted(self.when.needs - FRAME_SIGNALS)):
            raise InputError(
                "a thinker hangs on what a frame tells by itself",
                given=f"{type(self.when).__name__}, which needs {', '.join(asked)}",
                do="heads, silence, surprise, drop_ratio or clock",
            )
        number("every_s", self.every_s, above=0.0, unit="seconds", do="8 is a short clip")
        number("least_change", self.least_change, least=0.0, most=1.0, do="it is a share")
        whole("longest", self.longest, least=1, most=2048)

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - that of `when`
        """What the policy within needs."""
        return frozenset() if self.when is None else self.when.needs

    def check(self, model: VideoModel) -> None:
        """As the policy within does."""
        if self.when is not None:
            self.when.check(model)

    def new_state(self) -> Segment:
        return Segment(calling=self._calling())

    def _calling(self) -> StreamState | None:
        return None if self.when is None else self.when.new_state()

    @abstractmethod
    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """What is asked about one segment."""

    def think(self, moment: Moment, notes: Sequence[Noted], state: Segment) -> Thought | None:
        """At the first frame that is a whole segment behind its beginning."""
        state.since_s = moment.time_s if state.since_s is None else state.since_s
        state.changed = max(state.changed, moment.kept_ratio)
        if self.when is not None and state.calling is not None:
            state.called = self.when.decide(moment, state.calling).speaks or state.called
        # Half a millisecond of grace: times of frames are rounded.
        if moment.time_s - state.since_s < self.every_s - 5e-4:
            return None
        since_s, changed, called = state.since_s, state.changed, state.called
        state.since_s, state.changed, state.called = moment.time_s, 0.0, False
        if (changed < self.least_change and state.thought) or (self.when is not None and not called):
            return None
        state.thought = True
        return self.thought(since_s, moment.time_s, notes)
