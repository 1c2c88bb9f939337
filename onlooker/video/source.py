"""What every source is: frames in time order, facts known at the start, an account of what happened."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from onlooker.core.frame import Frame

MAX_NOTES = 16


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source says of itself before its first frame is taken. Unknown facts are None.

    `size` is (rows, cols) of the picture as it should be shown: turned upright, with square pixels, before any
    resizing asked of the source. A stream may change its size on the way; `SourceReport.num_size_changes` tells.
    """

    name: str
    """Path, address without its secrets, or a word for the kind of source."""
    live: bool = False
    """True where frames arrive at their own pace and waiting loses them; False where they can be read at any pace."""
    duration_s: float | None = None
    """Declared length in seconds."""
    fps: float | None = None
    """Declared average frames per second; never used to compute times."""
    size: tuple[int, int] | None = None
    """(rows, cols) as shown."""
    codec: str | None = None
    """Decoder name, such as h264."""
    rotation: int = 0
    """Degrees clockwise the stored picture is turned before it is delivered: 0, 90, 180 or 270."""
    start_time_s: float = 0.0
    """Time stamp of the beginning in the source's own clock; `Frame.time_s` counts from there."""


@dataclass(slots=True)
class SourceReport:
    """What happened so far. One live object per source: the source counts, everyone may read at any moment.

    Every decoded frame is delivered, skipped, dropped or (in a queue) still waiting:
    `num_decoded == num_delivered + num_skipped + num_dropped + waiting`.
    """

    num_decoded: int = 0
    """Frames decoded, or pushed by the caller."""
    num_delivered: int = 0
    """Frames handed to the consumer."""
    num_skipped: int = 0
    """Frames left out because sampling or the asked span of time did not need them."""
    num_dropped: int = 0
    """Frames lost because the consumer was too slow."""
    num_guessed_times: int = 0
    """Frames that came without a time: theirs was set one frame interval after the frame before."""
    num_repaired_times: int = 0
    """Frames whose time repeated or ran back a little: theirs was set just after the frame before."""
    num_clock_jumps: int = 0
    """Times the stream's clock was restarted or leapt: later frames were joined on without the leap."""
    num_gaps: int = 0
    """Steps in time much longer than usual, kept as they are: a pause, a variable rate, or pictures lost."""
    num_corrupt_packets: int = 0
    """Packets marked damaged, or that could not be decoded."""
    num_corrupt_frames: int = 0
    """Frames delivered or skipped that the decoder marked as damaged."""
    num_without_motion: int = 0
    """Frames for which motion vectors were wanted and the source has none; `notes` says why."""
    num_size_changes: int = 0
    """Times the stored picture changed its size on the way."""
    damage: list[str] = field(default_factory=list)
    """What was found damaged, in words, in the order found; empty for a sound source. Kept short."""
    notes: list[str] = field(default_factory=list)
    """What is no damage but good to know: which of several streams is read, an assumed rate, HDR colours."""

    def note_damage(self, text: str) -> None:
        """Add one line to `damage`, at most once, and at most `MAX_NOTES` lines in all."""
        if text not in self.damage and len(self.damage) < MAX_NOTES:
            self.damage.append(text)

    def note(self, text: str) -> None:
        """Add one line to `notes`, at most once, and at most `MAX_NOTES` lines in all."""
        if text not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(text)


class Source(ABC):
    """Frames in the order they are shown, each with its true time; read once, then closed.

    A source is its own iterator: `for frame in source` goes on where the last loop stopped, and times never decrease.
    When the frames end the source closes itself; leaving a `with` block, or dropping the last reference, closes it
    too. A closed source yields nothing more. `next` and `close` may be called from different threads.

    A source implements `info`, `report`, `__next__` and `close`, sets `info.live`, and counts in `report.num_dropped`
    what it had to throw away.
    """

    @property
    @abstractmethod
    def info(self) -> SourceInfo:
        """Facts about the source."""

    @property
    @abstractmethod
    def report(self) -> SourceReport:
        """The account of what happened so far; the same object at every call."""

    @abstractmethod
    def __next__(self) -> Frame:
        """Return the next frame; raise `StopIteration` at the end, `SourceError` or `DamagedSource` on trouble."""

    @abstractmethod
    def close(self) -> None:
        """Release files, decoders and threads. Calling it again does nothing."""

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
