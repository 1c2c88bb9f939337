"""From what a user types to frames with times."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame


@dataclass
class Opened:
    """Frames of a source, and what is known about it."""

    frames: Iterator[Frame]
    duration_s: float | None
    name: str
    reports: list[Any] = field(default_factory=list)
    """What the decoder had to say, filled when the frames are used up."""

    def warnings(self) -> list[str]:
        """Damage and repairs, one line each, once the frames were read."""
        return [line for report in self.reports for line in report.damage]


@contextmanager
def open_source(source: str, fps: float, end_s: float | None = None) -> Iterator[Opened]:
    """Open a file, a URL or `synthetic[:SEED[:SECONDS]]`. Raises `InputError` or `SourceError`."""
    if fps <= 0:
        raise InputError("fps must be above 0", given=str(fps), do="use 1 for one frame a second")
    if source == "synthetic" or source.startswith("synthetic:"):
        yield _synthetic(source, fps, end_s)
        return
    from onlooker.video import open_video

    # The end of a span is left out when reading; a frame at the very moment asked about belongs to it.
    until = None if end_s is None else end_s + 1e-6
    with open_video(source, fps=fps, end_s=until) as video:
        yield Opened(iter(video), video.info.duration_s, source, [video.report])


def _synthetic(source: str, fps: float, end_s: float | None) -> Opened:
    from onlooker.world import make_episode

    parts = source.split(":")[1:]
    try:
        seed = int(parts[0]) if parts else 0
        seconds = float(parts[1]) if len(parts) > 1 else 24.0
        if len(parts) > 2 or seed < 0 or not 1 <= seconds <= 86400:
            raise ValueError
    except ValueError:
        raise InputError(
            "a synthetic source is synthetic:SEED:SECONDS", given=source, do="for example synthetic:7:60"
        ) from None
    episode = make_episode(seed, "test", duration_s=seconds)
    frames = episode.frames(fps=fps)
    kept = frames if end_s is None else (frame for frame in frames if frame.time_s <= end_s)
    return Opened(kept, seconds, source)
