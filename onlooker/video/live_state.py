"""How a live stream is followed, and what is told of it: settings, states, events, figures."""

import math
from dataclasses import dataclass
from typing import Literal

from onlooker.core.errors import InputError
from onlooker.video.frame_sampling import FrameSampler
from onlooker.video.picture import Aspect, check_size

State = Literal["connecting", "live", "stale", "lost", "ended"]


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How a live stream is followed. Raises `InputError` for a value that makes no sense."""

    fps: float | None = 1.0
    """Pictures taken per second of the stream; None for all."""
    size: tuple[int, int] | None = None
    """(rows, cols) of the images; None for the size shown."""
    aspect: Aspect = "squash"
    """Whether `size` is filled ("squash") or shapes are kept ("fit")."""
    transport: Literal["tcp", "udp"] = "tcp"
    """What RTSP pictures travel on."""
    waiting: int = 1
    """Pictures that may wait for a slow reader; the oldest gives way to the newest and is counted."""
    connect_s: float = 10.0
    """The longest wait for the first picture of a connection, in seconds; who listens for a sender waits for ever."""
    stale_after_s: float = 3.0
    """Seconds without a picture after which the stream is stale; a picture older than this is never shown as new."""
    lost_after_s: float = 10.0
    """Seconds without a picture after which the connection is given up and made anew."""
    retry_first_s: float = 0.5
    """The first pause before connecting anew, in seconds; each further one is twice as long, less some chance."""
    retry_most_s: float = 30.0
    """The longest pause before connecting anew, in seconds. There is no last attempt."""
    codec: bool = False
    """Whether frames carry what the encoder said of them (`Frame.codec`); where it says nothing that is counted."""
    keep_s: float = 0.0
    """Seconds of the encoded stream that are kept, to cut clips from; 0 for none."""
    end_s: float | None = None
    """Where reading ends, in seconds since the first picture read; None goes on for ever."""

    def __post_init__(self) -> None:
        FrameSampler(self.fps)
        check_size(self.size, self.aspect)
        if self.transport not in ("tcp", "udp"):
            raise InputError("transport must be 'tcp' or 'udp'", given=repr(self.transport), do="transport='tcp'")
        if type(self.waiting) is not int or not 1 <= self.waiting <= 1024:
            raise InputError("waiting must be 1 to 1024 pictures", given=repr(self.waiting), do="waiting=1")
        for name in ("connect_s", "stale_after_s", "lost_after_s", "retry_first_s", "retry_most_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{name} must be a positive number of seconds", given=repr(value), do=f"{name}=10.0")
        if not 0 <= self.keep_s <= 600:
            raise InputError("keep_s must be 0 to 600 seconds", given=repr(self.keep_s), do="keep_s=20.0")
        if self.lost_after_s < self.stale_after_s:
            raise InputError(
                "lost_after_s must not be below stale_after_s",
                given=f"lost_after_s={self.lost_after_s}, stale_after_s={self.stale_after_s}",
                do="a stream is stale first, then lost",
            )


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """A live stream has come into another state."""

    state: State
    why: str | None
    """The reason, in words and without secrets; None where the state says it all."""
    wall_time_s: float
    """Time of day, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """How a live stream is doing."""

    state: State
    why: str | None
    since_s: float
    """Seconds for which it has been in this state."""
    silent_s: float | None
    """Seconds since the last sign of a picture; None before the first."""
    lag_s: float | None
    """How late the last picture came, against the promptest ones; None before the first."""
    num_connections: int
    """Connections that showed a picture."""
    num_failures: int
    """Connections that failed or broke off."""
    last_error: str | None


def pause_s(settings: LiveSettings, failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row (1, 2, ...); `chance` in 0..1 takes up to half of it away.

    Chance keeps a hundred cameras from coming back in the same moment.
    """
    most = min(settings.retry_most_s, settings.retry_first_s * 2 ** min(failures - 1, 30))
    return most * (1 - chance / 2)
