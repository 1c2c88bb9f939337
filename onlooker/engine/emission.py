"""When a compressor's tokens come out: at once, late, of several frames together, or not at all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from onlooker.core.contracts import Compressor, VideoModel, VisionTower
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Layout, Span
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.engine.hearing import to_hear
from onlooker.engine.packing import Work
from onlooker.engine.reading import Reading, reading_of
from onlooker.engine.request import release
from onlooker.kvstore import Chunk

if TYPE_CHECKING:
    from onlooker.engine.session import Session

TEXT_TOKENS = 32
"""Tokens of a frame's time mark and its marks, at most."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A patch that went through the tower, as the compressor's output is matched with it."""

    number: int
    """Of its first frame in the stream."""
    start_s: float
    end_s: float
    num_frames: int
    num_tokens: int
    """Before compression."""


@dataclass(frozen=True, slots=True, eq=False)
class Emission:
    """What a compressor gave out in one go."""

    parts: tuple[tuple[Pending, VisualTokens], ...] = ()
    """The patches of which tokens are kept, oldest first."""
    done: tuple[Pending, ...] = ()
    """All patches that are given out with it, those included of which nothing is kept."""
    pending: tuple[Pending, ...] = ()
    """Those that are held after it."""

    @property
    def tokens_seen(self) -> int:
        """Of the patches that are given out, before compression."""
        return sum(patch.num_tokens for patch in self.done)

    @property
    def tokens_kept(self) -> int:
        """Of the patches that are given out."""
        return sum(len(tokens) for _, tokens in self.parts)

    @property
    def frames_empty(self) -> int:
        """Frames that are given out and of which nothing is kept."""
        kept = {patch.number for patch, _ in self.parts}
        return sum(patch.num_frames for patch in self.done if patch.number not in kept)

    def waited_s(self, before: Sequence[Pending], now: float) -> float:
        """Stream time for which frames were held that were `pending` before, all together."""
        return sum((now - patch.end_s) * patch.num_frames for patch in self.done if patch in before)

    def readings(self, model: VideoModel, layout: Layout) -> list[Reading]:
        """What the model reads of it, patch by patch."""
        return [reading_of(model, tokens, patch.start_s, patch.end_s, layout) for patch, tokens in self.parts]


def match(method: Compressor, tokens: VisualTokens | None, pending: tuple[Pending, ...], num_held: int) -> Emission:
    """What a compressor gave out, patch by patch, when `pending` were held, the newest included, and `num_held` still
    are. Raises `InputError` when it breaks its promises: to hold no more than its `lookahead`, and to give out what it
    holds, once.
    """
    if not 0 <= num_held <= min(method.lookahead, len(pending)):
        raise InputError(
            f"{type(method).__name__} holds more frames than it says",
            given=f"{num_held} frames, lookahead {method.lookahead}, {len(pending)} to give out",
            do="correct the method: `num_held` is at most `lookahead`",
        )
    done, left = pending[: len(pending) - num_held], pending[len(pending) - num_held :]
    if tokens is None or not len(tokens):
        return Emission((), done, left)
    if len(done) == 1 and not method.lookahead:  # of the newest frame, by contract: no wait for the device
        return Emission(((done[0], tokens),), done, left)
    known = {patch.number: patch for patch in done}
    parts = tokens.by_frame()
    if unknown := [number for number, _ in parts if number not in known]:
        raise InputError(
            f"{type(method).__name__} gives out frames that it does not hold",
            given=f"frames {unknown}, where {sorted(known)} were to come",
            do="correct the method: every frame is given out once, and `num_held` counts those that are not yet",
        )
    return Emission(tuple((known[number], part) for number, part in parts), done, left)


def emitted(
    method: Compressor, tokens: VisualTokens, pending: tuple[Pending, ...], state: StreamState, ends: bool
) -> Emission:
    """What a compressor gave out when the newest of `pending` came; with `ends`, all that it holds besides."""
    given = match(method, tokens, pending, method.num_held(state))
    if not ends or not given.pending:
        return given
    rest = match(method, method.flush(state), given.pending, 0)
    return Emission(given.parts + rest.parts, given.done + rest.done)


def most_read(session: "Session", towers: Iterable[VisionTower]) -> int:
    """Tokens that a patch may bring into memory at most: its own, and those of patches that are held."""
    own = sum(tower.num_tokens for tower in towers)
    return own + sum(patch.num_tokens + TEXT_TOKENS for patch in session.pending)


class Writer:
    """The blocks of one stream that one step reads, one after the other: all of them are stored, or none."""

    def __init__(self, session: "Session", readings: Sequence[Reading]) -> None:
        self.session, self._left = session, list(readings)
        self.spans: list[Span] = []
        """What is stored."""
        self.error: Exception | None = None
        """Why nothing is."""
        self.end: Tensor | None = None
        """The last hidden state of the newest block, `[hidden_dim]`, if somebody listens to the stream."""
        self._chunk: Chunk | None = None

    def begin(self) -> Work | None:
        """The work of reading the next block; None when there is none, or no room for it."""
        if self.error is not None or not self._left:
            return None
        try:
            work, self._chunk = self._left.pop(0).begin(self.session.store)
        except CapacityError as full:
            self._fail(full)
            return None
        return to_hear(self.session, work)

    def seal(self) -> None:
        """The pass is over: store the block that was begun."""
        if self._chunk is None:
            return
        try:
            self.spans.append(self._chunk.seal())
            self._chunk = None
        except Exception as error:  # this stream's affair, not that of the others
            self._fail(error)

    def undo(self) -> None:
        """The store holds what it held before. Undoing twice is fine."""
        if self._chunk is not None:
            self._chunk.abort()
        while self.spans:
            self.session.store.take_back(self.spans.pop())
        self._chunk = None

    def _fail(self, error: Exception) -> None:
        self.undo()
        self.error = release(error)


def read_all(
    run: Callable[[Sequence[Work]], list[Tensor | None]], writers: Sequence[Writer], others: Sequence[Work]
) -> list[Tensor | None]:
    """Read what writers have to read, a block of each in every pass, and other works with the first; their scores.

    Nothing is stored when a pass fails.
    """
    try:
        begun = [(writer, work) for writer in writers if (work := writer.begin()) is not None]
        told = run([*(work for _, work in begun), *others]) if begun or others else []
        scores = told[len(begun) :]
        while begun:
            for (writer, _), end in zip(begun, told, strict=False):
                writer.end = end
                writer.seal()
            begun = [(writer, work) for writer in writers if (work := writer.begin()) is not None]
            told = run([work for _, work in begun]) if begun else []
    except BaseException:
        for writer in writers:
            writer.undo()
        raise
    return scores
