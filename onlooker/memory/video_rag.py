"""The newest frames, and beside them the timed texts that the question asks for (Video-RAG).

Luo et al., "Video-RAG", arXiv 2411.13093: what was said, read and detected in a video is kept as text, the question
finds the snippets that matter (inner product of text embeddings of at least 0.3), and they are read beside 64 frames.
Write the texts with `Session.note` as they come (speech, text on the screen, viewers' comments); a question sees none
that is later than itself. Training-free, as there. Changed: snippets are found by the question's own queries and their
mean keys in each layer, as ReKV finds frames, instead of by another model's embeddings, and by rank, not by threshold;
they lie where they came in the stream instead of before the question; no model call asks what to look for; nothing is
detected or transcribed here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import NOTES, Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import levelled


@dataclass
class Counted(StreamState):
    """Blocks of one stream, counted as they come, so that a plan costs only what changed."""

    seen: int = -1
    """Id of the last block counted."""
    frames: list[int] = field(default_factory=list)
    """Ids of the frames kept."""
    num_notes: int = 0


@dataclass(frozen=True)
class VideoRAG(MemoryPolicy):
    """Frames are forgotten soon, texts are found again."""

    realises: ClassVar[tuple[str, ...]] = ("video_rag", "livibench")
    scores_layers: ClassVar[bool] = True

    frames: int = 64
    """Newest frames kept."""
    notes: int = 8
    """Texts of which a layer sees those that score best."""
    recent_notes: int = 2
    """Newest texts that every layer sees besides."""
    level: bool = False
    """Take the trend over time out of the scores: likeness to a question rises along a stream."""
    max_notes: int = 2048
    """Texts kept; older ones are forgotten."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("notes", 0), ("recent_notes", 0), ("max_notes", 1)):
            if getattr(self, name) < least:
                given = f"{name}={getattr(self, name)}"
                raise InputError(f"{name} must be at least {least}", given=given, do="for example video_rag:notes=8")

    def new_state(self) -> Counted:
        """Nothing has come yet."""
        return Counted()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Park texts as they come: frames are read without them. Forget what is beyond the numbers."""
        assert isinstance(state, Counted)
        place = len(spans)
        while place and spans[place - 1].id > state.seen:
            place -= 1
        new = spans[place:]
        state.seen = spans[-1].id if spans else state.seen
        park = tuple(span.id for span in new if span.kind in NOTES)
        frames = state.frames + [span.id for span in new if span.kind == "vision"]
        state.frames = frames[-self.frames :]
        forget, surplus = frames[: -self.frames], state.num_notes + len(park) - self.max_notes
        state.num_notes = min(state.num_notes + len(park), self.max_notes)
        for span in spans:  # the oldest text stands behind no more than the frames that are kept
            if surplus <= 0:
                break
            if span.kind in NOTES:
                forget.append(span.id)
                surplus -= 1
        return Plan(park=tuple(block for block in park if block not in forget), forget=tuple(sorted(forget)))

    def scoring(self) -> Scoring:
        """Each block's largest share of the attention of a token and head of the whole prompt."""
        return "shares"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prompt, all frames, the best texts and the newest ones, in time order."""
        assert scores is not None, "texts are found by score"
        texts = [place for place, span in enumerate(spans) if span.kind in NOTES]
        old, newest = texts[: len(texts) - self.recent_notes], texts[max(0, len(texts) - self.recent_notes) :]
        # A stable sort: of equal scores the older text is read, on every device.
        told = levelled(scores[old], [spans[place] for place in old]) if self.level else scores[old]
        ranked = told.argsort(descending=True, stable=True)[: self.notes].tolist()
        seen = {*newest, *(old[n] for n in ranked)}
        return Recall(tuple(span.id for place, span in enumerate(spans) if span.kind not in NOTES or place in seen))
