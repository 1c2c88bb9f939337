"""What a trained part between the tower and the language model fills in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

if TYPE_CHECKING:
    from onlooker.core.contracts.model import ModelSpec


class Adapter(ABC):
    """A trained part that changes visual tokens before they are compressed and read, perhaps by what came before.

    It holds weights and no stream state: what it remembers of a stream is a `StreamState` that the session owns, forks,
    counts, saves and loads like a method's. `VideoModel.attach` adds it to a model, which then offers its `name` and
    what it `offers`: methods that were trained with it need it by that name.
    """

    name: ClassVar[str]
    """What methods need it by, in lower case."""
    offers: ClassVar[frozenset[str]] = frozenset()
    """What else methods may need of it, such as token extras that it adds."""
    version: str = "0"
    """Of its weights: a session that was saved with others is refused."""

    @classmethod
    def for_model(cls, spec: "ModelSpec", tower_dim: int) -> Self:
        """The part for a model of these sizes, whose own tower has so wide tokens: asked for where a file of it is
        named behind a model (`pocket-aware+my_part.py`)."""
        return cls()

    @abstractmethod
    def new_state(self) -> StreamState:
        """What it remembers of a stream before its first frame."""

    @abstractmethod
    def adapt(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens of the newest patch of one stream as they go on, in order, of the model's width; `state` is
        updated. Must not write into `tokens`."""

    def adapt_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The newest patch of several streams. Adapters may override this to work on all of them at once."""
        return [self.adapt(tokens, state) for tokens, state in zip(batch, states, strict=True)]
