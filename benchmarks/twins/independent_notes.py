"""`delta_notes`, but every key frame is described by itself: the control of "differential captions"."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onlooker.core.contracts import Moment, Thought
from onlooker.core.events import Noted
from onlooker.think.delta_notes import DeltaNotes, KeyFrame


@dataclass(frozen=True)
class IndependentNotes(DeltaNotes):
    """The same key frames, and nothing of what was said before."""

    summarise: int = 0

    def think(self, moment: Moment, notes: Sequence[Noted], state: KeyFrame) -> Thought | None:
        """A description of what is there now."""
        thought = super().think(moment, notes, state)
        return thought and replace(thought, prompt=self.prompt, since_s=moment.time_s)
