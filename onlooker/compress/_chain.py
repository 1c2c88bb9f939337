"""Compressors in a row, as one: `dtd+stc_pruner:keep=60`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch

from onlooker.core import registry
from onlooker.core.contracts import Compressor, VideoModel
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens, join


@dataclass
class ChainState(StreamState):
    """What each link remembers of the stream."""

    links: list[StreamState] = field(default_factory=list)
    holding: list[list[int]] = field(default_factory=list)
    """Numbers of the frames that each link holds, oldest first."""
    came: list[int] = field(default_factory=list)
    """Numbers of the newest frames, as far back as any may be held."""


@dataclass(frozen=True)
class Chain(Compressor):
    """Each link sees the tokens that the former let through, and nothing of what it left out.

    A frame of which a link keeps nothing is not seen by those behind it. One that looks ahead (see `lookahead`) gives
    its frames to the next one by one, as it gives them out; it is flushed when those that it waits for are left out.

    Raises `InputError` for fewer than two links, and for a link that needs whole frames behind one that thins them.
    """

    contract_exceptions: ClassVar[dict[str, str]] = {
        "settings_are_documented": "a chain is written link by link",
        "rows_are_carried": "a link may leave out what another has merged; every link carries its rows",
    }

    links: tuple[Compressor, ...]
    """The compressors, in the order in which a frame meets them."""

    def __post_init__(self) -> None:
        flat = [one for link in self.links for one in (link.links if isinstance(link, Chain) else (link,))]
        object.__setattr__(self, "links", tuple(flat))
        if len(flat) < 2:
            given = registry.describe(flat[0]) if flat else "none"
            raise InputError("a chain has two compressors or more", given=given, do="name another one behind +")
        for link in flat[1:]:
            if link.whole_frames:
                raise InputError(
                    f"{registry.describe(link)} needs whole frames and can only be the first of a chain",
                    given=registry.describe(self),
                    do="put it first, or leave it out",
                )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - that of its links
        """What any of the links needs."""
        return frozenset[str]().union(*(link.needs for link in self.links))

    @property
    def hears_codec(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - that of its links
        """Whether any of the links does."""
        return any(link.hears_codec for link in self.links)

    def new_state(self) -> ChainState:
        """A state of each link."""
        return ChainState([link.new_state() for link in self.links], [[] for _ in self.links])

    def less(self) -> Self | None:
        """The last link that can do with less does; those before it go on as they are."""
        for place in reversed(range(len(self.links))):
            if (lighter := self.links[place].less()) is not None:
                return replace(self, links=(*self.links[:place], lighter, *self.links[place + 1 :]))
        return None

    def check(self, model: VideoModel) -> None:
        """Every link, so that the error names the one that does not fit."""
        for link in self.links:
            link.check(model)

    @property
    def lookahead(self) -> int:
        """That of all links together."""
        return sum(link.lookahead for link in self.links)

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """One frame through all links."""
        return self.compress_streams([tokens], [state])[0]

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """One frame of each stream, link by link, all streams of a link at once."""
        chained = [_state(state) for state in states]
        passed = self._through(0, [[tokens] for tokens in batch], chained)
        if self.lookahead:  # else no frame waits, and nothing has to wait for the device
            for tokens, state, parts in zip(batch, chained, passed, strict=True):
                state.came = [*state.came, int(tokens.frame[0])][-self.lookahead - 1 :]
                parts += self._overdue(state)
        nothing = torch.arange(0)
        return [
            join(parts) if parts else tokens.select(nothing.to(tokens.features.device))
            for parts, tokens in zip(passed, batch, strict=True)
        ]

    def num_held(self, state: StreamState) -> int:
        """As many as came since the oldest that a link holds."""
        state = _state(state)
        held = [number for numbers in state.holding for number in numbers]
        return len(state.came) - state.came.index(min(held)) if held else 0

    def flush(self, state: StreamState) -> VisualTokens | None:
        """What each link holds, through those behind it."""
        parts = [part for place in range(len(self.links)) for part in self._flushed(place, _state(state))]
        return join(parts) if parts else None

    def _through(
        self, first: int, given: Sequence[list[VisualTokens]], states: Sequence[ChainState]
    ) -> list[list[VisualTokens]]:
        """Frames of each stream, oldest first, through the links from `first` on."""
        passed = [list(parts) for parts in given]
        for place in range(first, len(self.links)):
            link, came = self.links[place], passed
            passed = [[] for _ in came]
            for turn in range(max(map(len, came), default=0)):
                seen = [b for b, parts in enumerate(came) if turn < len(parts)]
                own = [states[b].links[place] for b in seen]
                out = link.compress_streams([came[b][turn] for b in seen], own)
                for b, tokens in zip(seen, out, strict=True):
                    if link.lookahead:
                        states[b].holding[place].append(int(came[b][turn].frame[0]))
                        self._let_go(place, states[b])
                        passed[b] += [part for _, part in tokens.by_frame()]
                    elif len(tokens):
                        passed[b].append(tokens)
        return passed

    def _let_go(self, place: int, state: ChainState) -> None:
        """The link at this place may hold less than before."""
        numbers = state.holding[place]
        state.holding[place] = numbers[len(numbers) - self.links[place].num_held(state.links[place]) :]

    def _flushed(self, place: int, state: ChainState) -> list[VisualTokens]:
        """What a link holds, through those behind it."""
        tokens = self.links[place].flush(state.links[place])
        self._let_go(place, state)
        frames = [] if tokens is None else [part for _, part in tokens.by_frame()]
        return self._through(place + 1, [frames], [state])[0]

    def _overdue(self, state: ChainState) -> list[VisualTokens]:
        """What a link would hold for too long, because links before it left out the frames that it waits for."""
        parts = []
        for place, numbers in enumerate(state.holding):
            if numbers and len(state.came) > self.lookahead and numbers[0] <= state.came[0]:
                parts += self._flushed(place, state)
        return parts


def _state(state: StreamState) -> ChainState:
    assert isinstance(state, ChainState), type(state)
    return state
