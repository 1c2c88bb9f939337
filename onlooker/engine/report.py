"""What a scheduler tells: what one step did, and where things stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from onlooker.core.errors import OnlookerError
from onlooker.core.events import Failed, FrameTaken
from onlooker.engine.probing import Aside
from onlooker.engine.request import Request
from onlooker.engine.stream_queue import QueueCounts, QueuedFrame, StreamQueue


@dataclass(frozen=True)
class Report:
    """What one step did."""

    events: tuple[tuple[StreamQueue, FrameTaken | Failed], ...] = ()
    """A `Failed` of one of our errors costs the frame; after any other the session cannot be trusted any more."""
    texts: tuple[tuple[Request, str], ...] = ()
    """New text of every question in flight; finished ones have `.answer()`."""
    seconds: float = 0.0
    lags_s: tuple[float, ...] = ()
    """Of the frames taken: from being submitted to being in memory."""
    frames_queued: tuple[QueuedFrame, ...] = ()
    """The frames of `events`, as they were submitted."""
    broken: tuple[tuple[Request, Exception], ...] = ()
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
    """Frames submitted and not taken yet."""
    questions: int
    """In flight."""
    degrade_level: str
    level: int
    """Place of the degrade_level, 0 for everything."""
    load: float
    """Share of the engine's time that streams and questions ask for, at this degrade_level."""
    base_s: float
    frame_s: float
    question_s: float
    lag_p50_s: float | None
    lag_p95_s: float | None
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    frames: QueueCounts
    refused: int
    """Streams and questions that met `Busy`."""
    background: int = 0
    """Works of lower priority in flight."""
    background_dropped: int = 0
    """Works of lower priority that were dropped: under load, or because they waited too long."""
    background_deferred: int = 0
    """Steps that such works have left to frames."""


def told_of(
    told: Sequence[str | Exception], requests: Sequence[Request], probes: Sequence[Aside]
) -> tuple[tuple[tuple[Request, str], ...], tuple[tuple[Request, Exception], ...]]:
    """What a pass gave of questions and the probes behind them: the texts, and the questions that failed. What failed
    is over."""
    for probe, text in zip(probes, told[len(requests) :], strict=True):
        if isinstance(text, Exception):
            probe.cancel()
    texts, broken = [], []
    for request, text in zip(requests, told, strict=False):
        if isinstance(text, Exception):
            request.abandon()
            broken.append((request, text))
        else:
            texts.append((request, text))
    return tuple(texts), tuple(broken)
