"""What is put to a system: a video with its questions, and the rows of a benchmark that could not be used."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, VideoRecord

Opener = Callable[[float], Iterator[Frame]]


@dataclass(frozen=True)
class Item:
    """One video, its questions by ask time, and how to watch it."""

    video: VideoRecord
    queries: tuple[QueryRecord, ...]
    open: Opener
    """Frames at so many per second, from the start."""
    cover: Callable[[float, tuple[int, int]], np.ndarray] | None = None
    """Ground truth where it exists: share of each cell of a grid that shows a thing at a time, `[rows, cols]`."""


@dataclass(frozen=True)
class Rejected:
    """A row of a benchmark that cannot be asked. It lowers the coverage by `questions`, and is no answer."""

    where: str
    reason: str
    questions: int = 1


@dataclass(frozen=True)
class Reading:
    """A benchmark as it was found on this disk."""

    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def asked(self) -> int:
        """All questions of the annotation file, usable or not."""
        return sum(len(item.queries) for item in self.items) + sum(row.questions for row in self.rejected)


def changed_after(item: Item, time_s: float) -> Item:
    """The same video up to and including `time_s`; every later picture is another one (its negative, upside down).

    An honest system answers a question asked at `time_s` as if nothing had happened.
    """

    def frames(fps: float) -> Iterator[Frame]:
        for frame in item.open(fps):
            if frame.time_s <= time_s:
                yield frame
            else:
                yield Frame(np.ascontiguousarray(255 - frame.image[::-1]), frame.time_s, frame.wall_time_s)

    return Item(item.video, item.queries, frames, item.cover)
