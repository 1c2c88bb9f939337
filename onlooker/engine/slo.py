"""What a scheduler promises to every stream, what it does when it is too much, and how it says no."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onlooker.core.contracts import Method
from onlooker.core.errors import CapacityError, InputError
from onlooker.engine.engine import Engine


class Busy(CapacityError):
    """There is no room now; `retry_s` says when to try again."""

    def __init__(self, what: str, *, given: str, retry_s: float) -> None:
        super().__init__(what, given=given, do=f"try again in {retry_s:.0f} s")
        self.retry_s = retry_s


@dataclass(frozen=True)
class SLO:
    """What a scheduler keeps, and with what. Raises `InputError` for values out of range."""

    frame_lag_s: float = 1.0
    """A frame is in memory within so many seconds of being submitted."""
    first_token_s: float = 0.5
    """A question's first token is known within so many seconds."""
    step_s: float | None = None
    """Seconds a step may take while there are questions, the time between two words of an answer; None for half of
    `first_token_s`, so that a question which comes right after a step's start has its first token after the next."""
    most_frames: int = 16
    """Frames in one step."""
    most_questions: int = 32
    """Questions in flight at once; more are refused."""
    most_background: int = 16
    """Works of lower priority in flight at once (thoughts, notes of rules); more are dropped, 0 is none."""
    background_share: float = 0.1
    """Share of a step's time that works of lower priority may add to it; one always may take part."""
    background_s: float = 20.0
    """Seconds after which a work of lower priority that found no time is dropped."""
    most_load: float = 0.85
    """Share of the engine's time that may be promised to streams; above 1 is more than there is."""
    device_budget_bytes: int | None = None
    """Device bytes for all streams together; None for no bound."""
    patience_s: float = 3.0
    """Overload lasts so long before the degrade levels is descended by one degrade_level."""
    recover_s: float = 15.0
    """Room lasts so long before it is climbed by one."""
    workers: int = 2
    """Threads that resize pictures ahead of their step; 0 does it inside the step."""

    def __post_init__(self) -> None:
        for name in ("frame_lag_s", "first_token_s", "patience_s", "recover_s", "background_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is a time above 0", given=str(getattr(self, name)))
        if self.step_s is not None and not self.step_s > 0:
            raise InputError("step_s is a time above 0", given=str(self.step_s), do="leave it out")
        for name, least in (("most_frames", 1), ("most_questions", 1), ("workers", 0), ("most_background", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is at least {least}", given=str(getattr(self, name)))
        if not 0.0 <= self.background_share <= 1.0:
            raise InputError("background_share is a share", given=str(self.background_share), do="0.1")
        if not self.most_load > 0:
            raise InputError("most_load is a share above 0", given=str(self.most_load), do="most_load=0.85")


@dataclass(frozen=True)
class DegradeLevel:
    """One way of doing with less. A list of them goes from everything to least."""

    name: str
    fps_share: float = 1.0
    """Share of the frames each stream asked for."""
    methods: Mapping[str, Method] = field(default_factory=dict)
    """In place of the engine's, by kind; the others stay."""


def default_levels(engine: Engine) -> tuple[DegradeLevel, ...]:
    """Half the frames, then less of every method that has less to do (`Method.less`): tokens first, as they cost most
    in a long stream, then the others."""
    levels = [DegradeLevel("everything"), DegradeLevel("half the frames", 0.5)]
    for kind in sorted(engine.methods, key=lambda kind: kind != "compressor"):
        if (lighter := engine.methods[kind].less()) is not None:
            lower, methods = levels[-1], {**levels[-1].methods, kind: lighter}
            levels.append(replace(lower, name=f"{lower.name}, less of the {kind}", methods=methods))
    return tuple(levels)
