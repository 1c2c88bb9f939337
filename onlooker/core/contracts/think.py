"""What a thinker fills in: what is written down while a stream is watched."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts.memory import MemoryPolicy
from onlooker.core.contracts.method import Method
from onlooker.core.contracts.model import VideoModel
from onlooker.core.contracts.respond import FRAME_SIGNALS, Moment
from onlooker.core.errors import InputError
from onlooker.core.events import Noted
from onlooker.core.spans import SaidPlace
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class Thought:
    """What to write down now: the model answers `prompt`, looking at nothing before `since_s`."""

    prompt: str
    since_s: float
    """Stream time from which it may look, in seconds."""
    until_s: float
    """Stream time up to which it is about."""
    longest: int = 48
    """Most tokens."""
    place: SaidPlace = "behind"
    """Where its tokens count their positions."""
    alone: bool = False
    """It does not read the hidden notes before it."""
    about: str = ""
    """What it asks about, for the thinker that reads the answer."""


class Thinker(Method):
    """Decides when something is written down, and about what. Never generates.

    The thought is decoded beside the stream, in passes of lower priority: frames never wait for it. Under load it is
    dropped and counted, and the thinker is not asked again for that moment.
    """

    hidden: ClassVar[bool] = False
    """False: a note is written into the memory, where later frames see it. True: frames never see it, and are to the
    bit what they are without it; questions read the newest notes behind all that is remembered."""

    def check(self, model: VideoModel) -> None:
        """As `Method.check`, less what the engine takes of any frame: `pooled`."""
        self._check_offers(self.needs - {"pooled"}, model)

    def check_memory(self, memory: MemoryPolicy) -> None:
        """Raise `InputError` where frames are not read while they are watched, and tell nothing to hang on."""
        if memory.holds_tokens and (heard := sorted(self.needs & FRAME_SIGNALS)):
            raise InputError(
                "a signal of a frame needs a memory that reads while watching",
                given=f"{', '.join(heard)}, {type(memory).__name__}",
                do="choose another memory, or a thinker that does not hang on it",
            )

    @abstractmethod
    def think(self, moment: Moment, notes: Sequence[Noted], state: StreamState) -> Thought | None:
        """What to write down now, after the newest frame; None: nothing. `notes` are the stream's newest, oldest first.
        `state` is updated."""

    def write(self, thought: Thought, said: str, state: StreamState) -> str:
        """The note, of what the model said; without words: there is nothing to note. `state` is updated."""
        return f"{thought.since_s:.0f}-{thought.until_s:.0f} s: {said}"

    def further(self, thought: Thought, state: StreamState) -> Thought | None:
        """What to ask besides about the same moment, now that this thought is complete; None: nothing more. `state` is
        updated."""
        return None

    def keep(self, note: Noted, state: StreamState) -> None:
        """Take a note that frames shall not see, if `hidden`."""
        return

    def kept(self, state: StreamState) -> Sequence[Noted]:
        """The notes that questions may read, if `hidden`."""
        return ()

    def read(self, state: StreamState, question: str, tokens: Callable[[str], int]) -> Sequence[Noted]:
        """Those of them that this question reads, oldest first; `tokens` counts what a note takes. All, by default."""
        return self.kept(state)
