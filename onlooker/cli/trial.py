"""What a simulated crowd is promised, and what became of that: the records of `crowd`."""

from dataclasses import dataclass, field

from onlooker.core.errors import InputError


@dataclass(frozen=True)
class Demand:
    """What every stream wants, and what it is promised. Raises `InputError` for values out of range."""

    fps: float = 1.0
    frame_lag_s: float = 1.0
    first_token_s: float = 0.5
    questions_per_minute: float = 1.0
    answer_tokens: int = 32
    most_frames: int = 16
    trial_s: float = 6.0
    """Seconds that count in one trial."""

    def __post_init__(self) -> None:
        for name in ("fps", "frame_lag_s", "first_token_s", "trial_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name.replace('_', '-')} is above 0", given=str(getattr(self, name)))
        if self.questions_per_minute < 0:
            raise InputError("questions a minute are 0 or more", given=str(self.questions_per_minute))


@dataclass(frozen=True)
class Longest:
    """The longest step of a trial, from when it was begun to when the next one could be."""

    seconds: float
    at_s: float
    """When it began, in seconds of the trial."""
    frames: int
    questions: int
    """In flight behind it."""
    why: str
    """What is known to have stopped it (`Paused.told`)."""


@dataclass(frozen=True)
class Trial:
    """What happened to so many streams."""

    streams: int
    holds: bool
    frame_lag_p50_s: float
    frame_lag_p95_s: float
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    dropped: int
    left_waiting: int
    questions: int
    steps: int
    frames_a_step: float
    busy: float
    """Share of the time in which a step ran."""
    failed: int = 0
    """Frames that could not be taken, or streams that could not join. With any of them a trial does not hold."""
    failures: dict[str, int] = field(default_factory=dict)
    """What they failed of, by the error's name."""
    broke: tuple[str, ...] = ()
    """What was promised and not kept, the most telling first; nothing of a trial that holds."""
    step_ms_a_frame: float = 0.0
    """Milliseconds of all steps, those of questions included, per frame that they took in."""
    allocation_retries: int = 0
    """How often PyTorch found no memory on the device at first, and gave back what it held unused."""
    device_allocations: int = 0
    """How often PyTorch asked the device for memory, which takes the longer the more is used."""
    unready_s: float = 0.0
    """Seconds in which frames waited and none could be taken, as their pictures were still being resized."""
    stalls: int = 0
    """Steps too long for their frames and questions, by the scheduler's count."""
    longest: "Longest | None" = None
    """The longest step, those before anything counts included."""
    collected_s: float = 0.0
    """Seconds in which Python looked for garbage, in the whole trial."""
    compiled: tuple[str, ...] = ()
    """Triton kernels that were compiled in the trial. Each of them stopped all streams."""


@dataclass(frozen=True)
class Cost:
    """What a step of so many frames takes when nothing else is asked."""

    frames: int
    step_ms: float
    frame_ms: float
    """Of the step, per frame."""
    stage_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each stage per frame, in steps that wait for every stage."""
