"""Notes with the time of what they tell, which questions search: for hours in kilobytes.

After every second the model says what came, left or changed, and the clock is put before each line:
"[12:07] red star came" (absolute times in words, as Grounded-VideoLLM, arXiv 2410.03290, has tokens for times relative
to a video's end, which a stream has not). The model does not write the time itself: it would have to get it right, and
a note of several seconds is learnt far slower than one of what is new (`docs/log.md`). A question about the past reads
the few lines that share its rarer words, and what was noted around them. Frames never see a note, and a note is made
of frames alone: what is wrong in one does not get into the next. For models that were taught it (`pocket-notes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Thought
from onlooker.core.events import Noted
from onlooker.core.state import StreamState
from onlooker.think.segment_notes import SegmentNotes


@dataclass(frozen=True)
class ClockNotes(SegmentNotes):
    """Notes with times, searched by questions."""

    realises: ClassVar[tuple[str, ...]] = ()
    contract_exceptions: ClassVar[dict[str, str]] = {"bounded_state": "the bound, `most` notes, is behind that stream"}

    every_s: float = 1.0
    """Seconds between two notes; what is told has the time of its note, so it is right to within so much."""
    longest: int = 48
    """Most tokens of a note."""
    prompt: str = "what came or left or changed now?"
    """What the model is asked each time; `pocket-notes` was taught to answer this one for a second."""
    most: int = 1024
    """Notes that are kept; seconds in which nothing is told have none. The oldest go."""
    read_tokens: int = 160
    """Tokens of notes that a question reads at most: the lines that share its rarer words, and what was noted around
    them; 0 is all. Of twice as many `pocket-notes` reads an order wrongly more often (`docs/log.md`)."""

    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """About the newest frames, from frames alone."""
        return Thought(self.prompt, 0.0, until_s, self.longest, self.place, alone=True)

    def write(self, thought: Thought, said: str, state: StreamState) -> str:
        """Every line of it behind the clock."""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return "\n".join(f"{clock(thought.until_s)} {line}" for line in lines)


def clock(time_s: float) -> str:
    """A stream time as models read it: `[mm:ss]`, the minutes modulo 100."""
    minute, second = divmod(int(time_s + 1e-6), 60)
    return f"[{minute % 100:02d}:{second:02d}]"
