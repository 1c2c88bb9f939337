"""What a trained decision net beside the language model fills in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from onlooker.core.state import StreamState


class Decider(ABC):
    """Tells of requests, frame by frame, how likely it is that now is the moment to react. Holds weights only.

    It sees the frame's tokens and what was asked, and knows when it reacted last; what was said it never sees, so that
    deciding takes the same time however long a reply is. A model with one offers `decision`.
    """

    @abstractmethod
    def new_state(self) -> StreamState:
        """What it remembers of a stream for one request, before its first frame."""

    @abstractmethod
    def decide(
        self, carriers: Tensor, requests: Tensor, since_s: Sequence[float | None], states: Sequence[StreamState]
    ) -> Tensor:
        """Probabilities, float32 `[requests]`, on the device; the states are updated.

        `carriers` are the frame's visual tokens as they enter the language model, `[tokens, hidden_dim]`; `requests`
        the mean embeddings of their words, `[requests, hidden_dim]`; `since_s` seconds since each was answered, None
        before.
        """
