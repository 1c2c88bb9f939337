"""The promises of gates."""

from typing import Any

import numpy as np
from contract_base import Opener, Stream
from contract_streams import (
    picture,
)

from onlooker.core.codec import CodecRecord
from onlooker.core.contracts import MemoryView
from onlooker.core.frame import Frame
from onlooker.core.spans import Hint, Span

HINTS: tuple[Hint | None, ...] = (None, "clear", "fuzzy", "dropped")


class GateStream(Stream):
    """Small pictures of a stream that stands still for a while, now and then."""

    num_long = 300
    seen_s: float | None = None

    def input(self, number: int) -> Frame:
        # Streams of an odd seed come with what a video's encoder says; most sources say nothing.
        moves = number % 20 < 10
        codec = CodecRecord("P", 1, 0, 9000 if moves else 60, None, None) if self.seed % 2 else None
        return Frame(picture(self.seed, number), number * 0.5, codec=codec)

    def push_input(self, given: Frame) -> Any:
        hint = HINTS[int(given.time_s) // 3 % len(HINTS)]
        memory = MemoryView((Span(0, "prefix", 12, 0.0, 0.0),), self.seen_s, hint)
        verdict = self.method.look(given, memory, self.state)
        if isinstance(verdict, np.ndarray) or verdict:
            self.seen_s = given.time_s
        return verdict


def verdicts_are_whole(method: Any, opened: Opener) -> None:
    """Every verdict is a share from 0 to 1, or a picture, and the first frame is seen, whatever its size."""
    stream = opened(method)
    looked, firsts = [stream.push(number) for number in range(60)], [opened(method).push(0)]
    for size in ((56, 56), (1, 1), (3, 200), (720, 406)):
        state, ground = method.new_state(), np.zeros((*size, 3), np.uint8)
        firsts.append(method.look(Frame(ground, 0.0), MemoryView(), state))
        looked.append(method.look(Frame(ground + 255, 1.0), MemoryView((), 0.0), state))
    for verdict in (*looked, *firsts):
        if isinstance(verdict, np.ndarray):
            Frame(verdict, 0.0)
        else:
            assert type(verdict) is float and 0 <= verdict <= 1, f"{verdict!r} is no share of a frame, and no picture"
    assert all(isinstance(verdict, np.ndarray) or verdict > 0 for verdict in firsts), "a first frame was skipped"


def gate_engagement(method: Any, opened: Opener) -> None:
    """On a stream that stands still for a while some frames are not encoded whole, and some are."""
    stream = opened(method)
    whole = {isinstance(verdict, float) and verdict == 1 for verdict in map(stream.push, range(60))}
    assert whole == {True, False}, "all frames of a stream that moves and stands still got the same verdict"


class Closed(MemoryView):
    """A memory of which only the time of the newest frame seen may be known."""

    def __getattribute__(self, name: str) -> Any:
        assert name not in ("spans", "hint"), f"it looks at the memory's {name} and does not say so (heeds_memory)"
        return super().__getattribute__(name)


def memory_is_heeded_openly(method: Any, opened: Opener) -> None:
    """A gate that does not say that it heeds the memory never looks at it: frames are shown to it ahead."""
    if method.heeds_memory:
        return
    state, seen_s = method.new_state(), None
    for number in range(60):
        frame = opened(method).input(number)
        verdict = method.look(frame, Closed((), seen_s), state)
        if isinstance(verdict, np.ndarray) or verdict:
            seen_s = frame.time_s


GATE = (verdicts_are_whole, gate_engagement, memory_is_heeded_openly)
