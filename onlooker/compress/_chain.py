"""Compressors in a row, as one: `dtd+stc_pruner:keep=60`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from onlooker.core import registry
from onlooker.core.contracts import Compressor, VideoModel
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass
class ChainState(StreamState):
    """What each link remembers of the stream."""

    links: list[StreamState] = field(default_factory=list)


@dataclass(frozen=True)
class Chain(Compressor):
    """Each link sees the tokens that the former let through, and nothing of what it left out.

    A frame of which a link keeps nothing is not seen by those behind it.
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

    def new_state(self) -> ChainState:
        """A state of each link."""
        return ChainState([link.new_state() for link in self.links])

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

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """One frame through all links."""
        return self.compress_streams([tokens], [state])[0]

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """One frame of each stream, link by link, all streams of a link at once."""
        passed = list(batch)
        for place, link in enumerate(self.links):
            seen = [b for b, tokens in enumerate(passed) if place == 0 or len(tokens)]
            own = [_state(states[b], place) for b in seen]
            for b, tokens in zip(seen, link.compress_streams([passed[b] for b in seen], own), strict=True):
                passed[b] = tokens
        return passed


def _state(state: StreamState, place: int) -> StreamState:
    assert isinstance(state, ChainState), type(state)
    return state.links[place]
