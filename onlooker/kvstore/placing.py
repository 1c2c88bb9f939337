"""Where blocks start on each axis of positions: one behind the other, or in step with the clock of one long video."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onlooker.kvstore.blocks import Block, Offset


@dataclass
class _Video:
    """Neighbouring blocks that tell the time by the first axis."""

    first: int
    """Clock of its oldest block."""
    last: int
    """Clock of its newest block."""
    num_blocks: int = 0
    extents: Counter[int] = field(default_factory=Counter)
    """How many blocks reach how far."""

    @property
    def span(self) -> int:
        """How far its largest position reaches, on whatever axis that is."""
        return max(self.last - self.first + 1, max(self.extents))


class Placing:
    """Where the next block of a sequence starts.

    A block starts, on all axes alike, where everything before it ends. Neighbouring blocks with a clock are one video:
    on all axes but the first they start where the video starts, and on the first as much further as their clock has
    advanced since. What follows a video starts behind its largest position.
    """

    def __init__(self, axes: int) -> None:
        self._start: Offset = (0,) * axes
        """Where the video starts; without one, where the next block starts."""
        self._video: _Video | None = None

    @classmethod
    def behind(cls, newest_first: Iterable[Block], offsets: Mapping[int, Offset], axes: int) -> "Placing":
        """What comes behind blocks that lie at these offsets. Looks no further back than the newest video goes."""
        placing, video = cls(axes), []
        for block in newest_first:
            if block.clock is None:
                placing._start = _moved(offsets[block.id], block.extent)
                break
            video.append(block)
        for block in reversed(video):
            if placing._video is None:
                placing._start = offsets[block.id]
            placing.place(block)
        return placing

    @property
    def reach(self) -> Offset:
        """Where everything so far ends, on each axis."""
        return self._start if self._video is None else _moved(self._start, self._video.span)

    def peek(self, clock: int | None) -> Offset:
        """Where a block with this clock would start."""
        if clock is None or self._video is None:
            return self.reach
        return (self._start[0] + clock - self._video.first, *self._start[1:])

    def place(self, block: Block) -> Offset:
        """Where this block starts; it is counted in from now on."""
        offset = self.peek(block.clock)
        if block.clock is None:
            self._start, self._video = _moved(offset, block.extent), None
            return offset
        if self._video is None:
            self._start, self._video = offset, _Video(block.clock, block.clock)
        self._video.last = block.clock
        self._video.num_blocks += 1
        self._video.extents[block.extent] += 1
        return offset

    def drop_oldest(self, leaving: Sequence[Block], num_left: int, after: Block | None) -> None:
        """The oldest blocks are gone, and `num_left` are left, of which `after` is the oldest: a video that has lost
        its beginning starts, on every axis, where the rest of it does."""
        video = self._video
        if video is None or video.num_blocks <= num_left:
            return
        if after is None or after.clock is None:
            self._start, self._video = self.reach, None
            return
        for block in leaving[num_left - video.num_blocks :]:
            video.extents[block.extent] -= 1
        video.extents = +video.extents
        self._start = (self._start[0] + after.clock - video.first, *self._start[1:])
        video.first, video.num_blocks = after.clock, num_left

    def copy(self) -> "Placing":
        """An independent copy."""
        twin, video = Placing(len(self._start)), self._video
        twin._start = self._start
        if video is not None:
            twin._video = _Video(video.first, video.last, video.num_blocks, video.extents.copy())
        return twin


def lay_out(blocks: Iterable[Block], axes: int) -> tuple[list[Offset], Offset]:
    """Where blocks start that lie one behind the other from position 0, and where the last one ends."""
    placing = Placing(axes)
    return [placing.place(block) for block in blocks], placing.reach


def _moved(offset: Offset, by: int) -> Offset:
    return tuple(place + by for place in offset)
