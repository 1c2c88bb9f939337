"""What a response policy sees and fills in."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from onlooker.core.contracts.method import Method
from onlooker.core.contracts.model import VideoModel
from onlooker.core.state import StreamState

Outcome = Literal["silent", "speak", "delegate"]
"""What a policy may decide: nothing is said; the rule speaks (as its `then` has it); somebody better is to look."""

ANY_MODEL = frozenset({"speak_probability", "surprise", "said_perplexity"})
"""Signals of a moment that the engine computes on any model that reads while watching. The others named in a policy's
`needs` have to be offered by the model: `silence_probability`, `heads`, `decision`."""

FRAME_SIGNALS = frozenset({"silence_probability", "surprise", "heads"})
"""Signals that are read from a frame's last hidden state, where the frame is read: they cost no pass."""


@dataclass(frozen=True)
class Moment:
    """What a response policy sees of the newest frame of one stream.

    What costs something is computed only for a policy that names it in `needs`, and None for all others.
    """

    time_s: float
    kept_ratio: float
    """Share of the frame's visual tokens that the compressor kept."""
    recomputed_ratio: float | None
    """Share of the tower's tokens that the encoder computed anew; None unless the session traces its work."""
    speak_probability: float | None = None
    """The model's own probability of yes to the standing question: a pass beside the stream."""
    silence_probability: float | None = None
    """Probability, where the frame ends, of the token that a model was trained to say when nothing is to be said. Costs
    no pass; None for a frame that kept no tokens."""
    silence_is_likeliest: bool | None = None
    """Whether that token is likelier than every other; comes with it."""
    surprise: float | None = None
    """How unlikely the frame is under what was seen: the squared distance of its last hidden state from the running
    mean, in running variances, averaged over dimensions; 1 is as usual. Costs no pass; None for the first frames."""
    said_perplexity: float | None = None
    """Perplexity of what the rule said last, told again after what is remembered now: a pass beside the stream. None
    while nothing was said, or while it is being said."""
    said_s: float | None = None
    """Stream time at which the rule spoke last; None before. Known to every policy."""
    heads: Mapping[str, float] | None = None
    """Probabilities that trained heads give the frame's last hidden state, by name. Costs no pass."""
    decision: float | None = None
    """Probability that a trained decision net gives to reacting to the standing question now (`Decider`). Costs no
    pass; None for a frame that kept no tokens."""
    pooled: Tensor | None = field(default=None, compare=False)
    """Mean of the frame's visual tokens as they were kept, `[hidden_dim]`; of thinkers only."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy decides, and the number that it decided by, for drawing."""

    outcome: Outcome
    score: float | None = None
    threshold: float | None = None
    """Where the score counts, at this moment."""

    @property
    def speaks(self) -> bool:
        """True when something is to be said."""
        return self.outcome == "speak"


SILENT = Decision("silent")
SPEAK = Decision("speak")


class ResponsePolicy(Method):
    """Decides, frame by frame, whether the model should speak by itself. Never generates."""

    @abstractmethod
    def decide(self, moment: Moment, state: StreamState) -> Decision:
        """Is now a moment to speak (`SPEAK`) or not (`SILENT`)? `state` is updated."""

    def check(self, model: VideoModel) -> None:
        """As `Method.check`, less the signals that the engine computes on any model."""
        self._check_offers(self.needs - ANY_MODEL, model)
