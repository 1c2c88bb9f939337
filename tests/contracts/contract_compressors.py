"""The promises of compressors."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from contract_base import NUM, Opener, Stream, assert_finite, assert_same, run
from contract_streams import (
    DIM,
    frame_tokens,
    moving_features,
    moving_frame,
)

from onlooker.compress import num_kept
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join


class CompressorStream(Stream):
    """Frames of 20 tokens through a compressor."""

    def input(self, number: int) -> VisualTokens:
        return moving_frame(self.seed, number)

    def push_input(self, given: VisualTokens) -> VisualTokens:
        return self.method.compress(given, self.state)

    def push_together(self, others: Sequence[Stream], numbers: Sequence[int]) -> list[Any]:
        batch = [stream.input(number) for stream, number in zip(others, numbers, strict=True)]
        return self.method.compress_streams(batch, [stream.state for stream in others])


class _Emitted:
    """What a compressor gives out of one stream, checked against what it was given."""

    def __init__(self, method: Any, state: StreamState) -> None:
        self.method, self.state = method, state
        self.given: dict[int, VisualTokens] = {}
        self.parts: list[VisualTokens] = []
        self._last = -1
        """Newest frame that is given out."""

    def push(self, given: VisualTokens) -> VisualTokens:
        newest = int(given.frame[0])
        self.given[newest] = given
        out = self.method.compress(given, self.state)
        held = self.method.num_held(self.state)
        assert 0 <= held <= self.method.lookahead, f"{held} frames are held, lookahead {self.method.lookahead}"
        self._take(out, newest - held)
        return out

    def flush(self) -> None:
        before = self.method.num_held(self.state)
        out = self.method.flush(self.state)
        assert self.method.num_held(self.state) == 0, "something is held after a flush"
        assert before or out is None or not len(out), "a flush gives out what was not held"
        if out is not None:
            self._take(out, max(self.given))

    def _take(self, out: VisualTokens, last: int) -> None:
        frames = out.frame.tolist()
        assert frames == sorted(frames), f"frames are not in order: {frames}"
        assert all(self._last < n <= last for n in frames), f"frames {frames}, where {self._last + 1} to {last} come"
        for number in dict.fromkeys(frames):
            given, of = self.given[number], out.frame == number
            slot = out.slot[of]
            assert out.grid == given.grid and out.features.dtype == given.features.dtype
            assert (slot.diff() > 0).all(), f"slots are not ascending and unique: {slot.tolist()}"
            assert set(slot.tolist()) <= set(given.slot.tolist())
            assert (out.time_s[of] == given.time_s[0]).all(), "another frame's time"
        self._last = last
        self.parts.append(out)

    @property
    def kept(self) -> int:
        return sum(map(len, self.parts))

    @property
    def seen(self) -> int:
        return sum(map(len, self.given.values()))


def _emitted(stream: Stream, frames: Sequence[VisualTokens]) -> _Emitted:
    """All frames pushed, and the rest flushed."""
    emitted = _Emitted(stream.method, stream.state)
    for given in frames:
        emitted.push(given)
    emitted.flush()
    return emitted


def order(method: Any, opened: Opener) -> None:
    """Tokens of the newest frame, each once, in raster order; of a method that looks ahead, of frames that were not
    given out yet, each frame once, and all of them when it is flushed."""
    stream = opened(method)
    _emitted(stream, [stream.input(number) for number in range(NUM)])


def budget(method: Any, opened: Opener) -> None:
    """As many tokens as `keep` or `keep_ratio` says; without them, no more than there were, and some."""
    stream = opened(method)
    emitted = _Emitted(method, stream.state)
    for number in range(NUM):
        given = stream.input(number)
        count = len(emitted.push(given))
        if hasattr(method, "keep") and not method.lookahead:
            assert count == num_kept(len(given), method.keep, getattr(method, "keep_ratio", None))
    emitted.flush()
    assert 1 <= emitted.kept <= emitted.seen
    if hasattr(method, "keep"):
        one = num_kept(len(stream.input(0)), method.keep, getattr(method, "keep_ratio", None))
        assert emitted.kept <= NUM * one, f"{emitted.kept} tokens, where {NUM * one} may be kept"


def rows_are_carried(method: Any, opened: Opener) -> None:
    """A token that stands for itself has the rows of the token that it was, in every array. No weight comes from
    nowhere, no array is lost."""
    stream = opened(method)
    emitted = _emitted(stream, [stream.input(number) for number in range(NUM)])
    for out in emitted.parts:
        for number, part in out.by_frame():
            given = emitted.given[number]
            assert part.extras.keys() == given.extras.keys(), f"extras {list(given.extras)} became {list(part.extras)}"
            alone = part.weight == 1
            for name, source in (("features", given.features), *given.extras.items()):
                value = part.features if name == "features" else part.extras[name]
                assert torch.equal(value[alone], source[part.slot[alone]]), f"{name} are not those of the kept tokens"
    weight = sum(float(out.weight.sum()) for out in emitted.parts)
    assert weight <= emitted.seen * (1 + 1e-5), "weight came from nowhere"


def engagement(method: Any, opened: Opener) -> None:
    """On a moving clip something is left out, and something is kept."""
    stream = opened(method)
    emitted = _emitted(stream, [stream.input(number) for number in range(NUM)])
    assert 0 < emitted.kept < emitted.seen


def a_look_leaves_no_trace(method: Any, opened: Opener) -> None:
    """What a question reads of what is held, on a fork, changes nothing that is given out later."""
    expected = run(opened(method), range(NUM))
    stream = opened(method)
    for number in range(NUM):
        assert_same(stream.push(number), expected[number])
        held = method.num_held(stream.state)
        out = method.flush(stream.state.fork())
        assert method.num_held(stream.state) == held
        assert held or out is None or not len(out), "a flush gives out what was not held"


def odd_streams(method: Any, opened: Opener) -> None:
    """Constant, black, one-frame and one-token streams give finite tokens, and so does one whose size changes."""
    still = moving_features(0, 0, 20, DIM)
    for features in (still, torch.zeros(20, DIM), torch.ones(20, DIM), still[:1]):
        grid = (4, 5) if len(features) == 20 else (1, 1)
        emitted = _emitted(opened(method), [frame_tokens(features, number, grid) for number in range(4)])
        assert_finite(emitted.parts)
    sizes = [(4, 5), (4, 5), (2, 3), (4, 5), (2, 3), (2, 3)]
    frames = [frame_tokens(still[: rows * cols], number, (rows, cols)) for number, (rows, cols) in enumerate(sizes)]
    assert_finite(_emitted(opened(method), frames).parts)


def half_precision(method: Any, opened: Opener) -> None:
    """bfloat16 in, bfloat16 out."""
    emitted = _emitted(opened(method), [moving_frame(0, number, torch.bfloat16) for number in range(4)])
    assert_finite(emitted.parts)


def generous_budget(method: Any, opened: Opener) -> None:
    """A budget larger than the frame keeps everything."""
    if "keep" not in {f.name for f in dataclasses.fields(method)}:
        return
    changes = {"keep_ratio": None} if hasattr(method, "keep_ratio") else {}
    stream = opened(dataclasses.replace(method, keep=10_000, **changes))
    emitted = _emitted(stream, [stream.input(number) for number in range(4)])
    kept, given = join(emitted.parts), join(emitted.given.values())
    assert_same(dataclasses.replace(kept, whole={}), dataclasses.replace(given, whole={}))


COMPRESSOR = (
    order,
    budget,
    rows_are_carried,
    engagement,
    a_look_leaves_no_trace,
    odd_streams,
    half_precision,
    generous_budget,
)
