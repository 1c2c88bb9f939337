"""Say a few words a second while watching goes on (Speak While Watching).

"Speak While Watching", 2026: reading and writing advance together when what is said takes its positions from another
range than what comes in: `own`, a counter of its own (the paper's group layout, its best trade-off), `gap`, from 10,000
behind, or `overlap`, from where the input stands. A few tokens are said for every frame, the rest at the end. Here the
words of a second are a note that frames never see; they are decoded in the passes of the frames that follow, so that
both advance at once (the released evaluation simulates that serially). Changed: the published model was fine-tuned for
its layout, and a model that was not loses by any but `behind`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Thought
from onlooker.core.events import Noted
from onlooker.core.spans import SaidPlace
from onlooker.think.segment_notes import SegmentNotes


@dataclass(frozen=True)
class SpeakWhileWatching(SegmentNotes):
    """A few words for every second."""

    realises: ClassVar[tuple[str, ...]] = ("speak_while_watching",)

    every_s: float = 1.0
    """Seconds from one text to the next."""
    longest: int = 3
    """Most tokens of a text: published are three for each frame."""
    prompt: str = "Say what happens now."
    """What the model is asked each time."""
    place: SaidPlace = "own"
    """Where a text counts its positions: own (the group layout), gap, overlap, or behind everything."""

    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """About now; what was said before is read like everything that questions read."""
        return Thought(self.prompt, 0.0, until_s, self.longest, self.place)
