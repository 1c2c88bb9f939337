"""What a scheduler tells: what one step did, and where things stand."""

from dataclasses import dataclass

from onlooker.core.errors import OnlookerError
from onlooker.core.events import Failed, FrameTaken
from onlooker.engine.asking import Asking
from onlooker.engine.lane import Lane, LaneCounts, Offer


@dataclass(frozen=True)
class Report:
    """What one step did."""

    events: tuple[tuple[Lane, FrameTaken | Failed], ...] = ()
    """A `Failed` of one of our errors costs the frame; after any other the session cannot be trusted any more."""
    texts: tuple[tuple[Asking, str], ...] = ()
    """New text of every question in flight; finished ones have `.answer()`."""
    seconds: float = 0.0
    lags_s: tuple[float, ...] = ()
    """Of the frames taken: from being offered to being in memory."""
    offers: tuple[Offer, ...] = ()
    """The frames of `events`, as they were offered."""
    broken: tuple[tuple[Asking, Exception], ...] = ()
    """Questions that failed, and are in flight no longer."""
    probes: int = 0
    """Looks of rules that took part."""

    @property
    def idle(self) -> bool:
        """True when there was nothing to do."""
        return not (self.events or self.texts or self.broken or self.probes)

    @property
    def errors(self) -> tuple[Exception, ...]:
        """Everything that failed and was not one of our errors; after such, the engine itself may be broken."""
        failed = [event.error for _, event in self.events if isinstance(event, Failed)]
        failed += [error for _, error in self.broken]
        return tuple(error for error in failed if not isinstance(error, OnlookerError))


@dataclass(frozen=True)
class SchedulerStats:
    """Where a scheduler stands."""

    streams: int
    waiting: int
    """Frames offered and not taken yet."""
    questions: int
    """In flight."""
    rung: str
    level: int
    """Place of the rung, 0 for everything."""
    load: float
    """Share of the engine's time that streams and questions ask for, at this rung."""
    base_s: float
    frame_s: float
    question_s: float
    lag_p50_s: float | None
    lag_p95_s: float | None
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    frames: LaneCounts
    refused: int
    """Streams and questions that met `Busy`."""
