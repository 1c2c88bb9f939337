"""From what a user types to frames with times."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onlooker.core.errors import DamagedSource, InputError
from onlooker.core.frame import Frame

if TYPE_CHECKING:
    from onlooker.video import LiveSource


@dataclass(frozen=True)
class Reading:
    """How a source is to be read, where it does not say so itself; see `open_video` for each field."""

    stream: int | None = None
    rate: float | None = None
    live: bool | None = None
    codec: bool = False
    workers: int = 1


def hears_codec(methods: Mapping[str, Any]) -> bool:
    """Whether one of these methods, by kind, looks at what the video's encoder said."""
    from onlooker.core import registry

    return any(registry.make(kind, text).hears_codec for kind, text in methods.items())


AS_IT_SAYS = Reading()
MOST_RESIZERS, MOST_AHEAD = 8, 16
"""Threads that resize frames, and frames that wait to be taken."""


@dataclass
class Opened:
    """Frames of a source, and what is known about it."""

    frames: Iterator[Frame]
    duration_s: float | None
    name: str
    reports: list[Any] = field(default_factory=list)
    """What the decoder had to say, filled when the frames are used up."""
    live: "LiveSource | None" = None
    """The source itself, where frames come at their own pace, so that waiting would only make them old."""

    @property
    def is_live(self) -> bool:
        """Whether frames come at their own pace."""
        return self.live is not None

    def warnings(self) -> list[str]:
        """Damage and repairs, one line each, once the frames were read."""
        return [line for report in self.reports for line in report.damage]

    def remarks(self) -> list[str]:
        """What is odd about the times of the frames, though perhaps as it should be."""
        lines = []
        for report in self.reports:
            if report.num_gaps:
                lines.append(f"the source has {_times(report.num_gaps, 'gap')} in time: a pause, or pictures lost")
            if report.num_clock_jumps:
                lines.append(f"the source's clock jumped {_times(report.num_clock_jumps, 'time')}: joined without it")
            if report.num_guessed_times:
                how = "their arrival" if self.is_live else "the frame rate"
                lines.append(f"{_times(report.num_guessed_times, 'frame')} came without a time: set from {how}")
            lines += report.notes
        return lines


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def stranger(model: str, source: str) -> list[str]:
    """What there is to say when a model that knows only Pocket World is shown something else; nothing otherwise."""
    from onlooker.models import BUILT_IN

    if model not in BUILT_IN or source == "synthetic" or source.startswith("synthetic:"):
        return []
    return [f"{model} has only ever seen Pocket World, a drawn world of shapes: of other footage it guesses (--model)"]


@contextmanager
def open_source(
    source: str, fps: float, end_s: float | None = None, strict: bool = False, reading: Reading = AS_IT_SAYS
) -> Iterator[Opened]:
    """Open a file, an address or `synthetic[:SEED[:SECONDS]]`, up to and with the moment `end_s` (seconds).

    With `strict` a damaged source ends in `DamagedSource`; without it the damage is in `warnings()`.
    Raises `InputError` or `SourceError`.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise InputError("fps must be a number above 0", given=str(fps), do="use 1 for one frame a second")
    if source == "synthetic" or source.startswith("synthetic:"):
        yield _synthetic(source, fps, end_s)
        return
    from onlooker.video import LiveSource, open_video

    # The end of a span is left out when reading; a frame at the very moment asked about belongs to it.
    until = None if end_s is None else end_s + 1e-6
    on_damage = "raise" if strict else "report"
    try:
        with open_video(source, fps=fps, end_s=until, on_damage=on_damage, **asdict(reading)) as video:
            live = video if isinstance(video, LiveSource) else None
            yield Opened(iter(video), video.info.duration_s, video.info.name, [video.report], live)
    except DamagedSource as damage:
        raise DamagedSource(damage.what, given=damage.given, do="without --strict, what decodes is used") from damage


@contextmanager
def read_ahead(opened: Opened, resize: Callable[[np.ndarray], np.ndarray] | None = None) -> Iterator[Iterator[Frame]]:
    """Frames of a source that can wait, read and resized on threads of their own while whoever takes them is at work
    on those before: QuickVideo (arXiv 2505.16175) overlaps decoding with the prefill. Live frames come as they come."""
    from onlooker.video import Ahead, changed
    from onlooker.video.parallel import cores

    if opened.is_live:
        yield opened.frames
        return

    def resized(frame: Frame) -> Frame:
        return frame if resize is None else replace(frame, image=resize(frame.image))

    with Ahead(changed(opened.frames, resized, min(MOST_RESIZERS, cores())), most=MOST_AHEAD) as frames:
        yield frames


def _synthetic(source: str, fps: float, end_s: float | None) -> Opened:
    from onlooker.world import make_episode

    parts = source.split(":")[1:]
    try:
        seed = int(parts[0]) if parts else 0
        seconds = float(parts[1]) if len(parts) > 1 else 24.0
        if len(parts) > 2 or seed < 0 or not 4 <= seconds <= 86400:
            raise ValueError
    except ValueError:
        raise InputError(
            "a synthetic source is synthetic:SEED:SECONDS, with 4 to 86400 seconds",
            given=source,
            do="for example synthetic:7:60",
        ) from None
    episode = make_episode(seed, "test", duration_s=seconds)
    frames = episode.frames(fps=fps)
    kept = frames if end_s is None else itertools.takewhile(lambda frame: frame.time_s <= end_s, frames)
    return Opened(kept, seconds, source)
