"""A note for every segment that frames never see (Think-While-Watching).

"Think While Watching", ECCV 2026 (arXiv 2603.11896): video and questions are sources, notes and answers are targets; a
note sees all sources up to its segment and all notes before it, a source never sees a note. So the frames are to the
bit what they are without notes, a new frame has its place whatever is being written, and what is seen and what is said
count positions apart. Changed: no second cache; the newest notes are read again by each question, behind all that is
remembered (GPE, arXiv 2505.16983, finds that re-reading the output costs next to nothing, while input that sees output
does). Its three stages of training are left out, so the published gains are not claimed.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from onlooker.core.checks import whole
from onlooker.core.contracts import Thought
from onlooker.core.events import Noted
from onlooker.core.spans import SaidPlace
from onlooker.core.state import StreamState
from onlooker.think._search import chosen
from onlooker.think._segments import Segment, Segments


@dataclass
class Kept(Segment):
    """The segment, and the newest notes."""

    texts: deque[str] = field(default_factory=deque)
    times: deque[float] = field(default_factory=deque)


@dataclass(frozen=True)
class SegmentNotes(Segments):
    """Notes for questions only."""

    hidden: ClassVar[bool] = True
    realises: ClassVar[tuple[str, ...]] = ("think_while_watching",)

    every_s: float = 30.0
    """Seconds of a segment."""
    most: int = 64
    """Notes that are kept; the oldest go."""
    place: SaidPlace = "behind"
    """Where a note counts its positions; a model that was trained so wants own, gap or overlap."""
    read_tokens: int = 0
    """Tokens of notes that a question reads at most: those that share its rarer words, then those around them; 0 is
    all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("most", self.most, least=1, most=4096)
        whole("read_tokens", self.read_tokens, least=0, most=1 << 16)

    def new_state(self) -> Kept:
        return Kept(calling=self._calling())

    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """About all that is remembered; the notes before it are read like everything that questions read."""
        prompt = f"{self.prompt} ({since_s:.0f}-{until_s:.0f} s)"
        return Thought(prompt, 0.0, until_s, self.longest, self.place)

    def write(self, thought: Thought, said: str, state: StreamState) -> str:
        """The note, with the segment that it is about."""
        return f"{max(0.0, thought.until_s - self.every_s):.0f}-{thought.until_s:.0f} s: {said}"

    def keep(self, note: Noted, state: Kept) -> None:
        """The newest of them."""
        state.texts.append(note.text)
        state.times.append(note.time_s)
        while len(state.texts) > self.most:
            state.texts.popleft()
            state.times.popleft()

    def kept(self, state: Kept) -> list[Noted]:
        """All of them, oldest first."""
        return [Noted(time_s, text, "thought") for time_s, text in zip(state.times, state.texts, strict=True)]

    def read(self, state: Kept, question: str, tokens: Callable[[str], int]) -> list[Noted]:
        """Those that this question looks for, within `read_tokens`."""
        notes = self.kept(state)
        if not self.read_tokens:
            return notes
        texts = [note.text for note in notes]
        return [notes[n] for n in chosen(texts, [tokens(text) for text in texts], question, self.read_tokens)]
