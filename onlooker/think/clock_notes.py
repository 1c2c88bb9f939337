"""Notes that tell the time of what they tell, and that questions search: for hours in kilobytes.

What happened is written down every few seconds with its stream time, "[12:07] red star came", as absolute times in
words (Grounded-VideoLLM, arXiv 2410.03290, has tokens for times relative to a video's end, which a stream has not); a
question about the past reads the few notes that share its rarer words. Frames never see a note, and a note is made of
frames alone: what is wrong in one does not get into the next. For models that were taught it (`pocket-notes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Thought
from onlooker.core.errors import InputError
from onlooker.core.events import Noted
from onlooker.think.segment_notes import SegmentNotes

SINCE = "{since}"


@dataclass(frozen=True)
class ClockNotes(SegmentNotes):
    """Notes with times, searched by questions."""

    realises: ClassVar[tuple[str, ...]] = ()

    every_s: float = 8.0
    """Seconds of a segment."""
    longest: int = 64
    """Most tokens of a note."""
    prompt: str = f"what came or left or changed since {SINCE}?"
    """What the model is asked at the end of a segment; `{since}` becomes the stream time at which it began."""
    most: int = 450
    """Notes that are kept, an hour of them at the default pace; the oldest go."""
    read_tokens: int = 224
    """Tokens of notes that a question reads at most; 0 is all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if SINCE not in self.prompt:
            raise InputError("a prompt for notes with times says since when", given=repr(self.prompt)[:80], do=SINCE)

    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """About the segment, from frames alone."""
        prompt = self.prompt.replace(SINCE, clock(since_s))
        return Thought(prompt, 0.0, until_s, self.longest, self.place, alone=True)

    def write(self, thought: Thought, said: str) -> str:
        """As it was said: it tells times itself."""
        return said


def clock(time_s: float) -> str:
    """A stream time as models read it: `[mm:ss]`, the minutes modulo 100."""
    minute, second = divmod(int(time_s + 1e-6), 60)
    return f"[{minute % 100:02d}:{second:02d}]"
