"""Reason about every few frames while the next ones arrive (TaYS).

"Think-as-You-See", CVPR 2026 (after StreamingThinker, arXiv 2603.02872): sentence i sees the question, the frames up to
group i and the sentences before it, never a later frame; frames never see a sentence; frames and sentences count their
positions apart, each from zero; a sentence is decoded while the next frames are read. Here a sentence is a short note
after every group that frames never see (as `segment_notes`), placed by a counter of its own. Changed: no second cache
(questions read the sentences again), and a group in which hardly anything changed goes without a sentence instead of a
`<skip>` token. Published gains come of fine-tuning on it.
"""

from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.spans import SaidPlace
from onlooker.think.segment_notes import SegmentNotes


@dataclass(frozen=True)
class TaYS(SegmentNotes):
    """A sentence for every group of frames."""

    realises: ClassVar[tuple[str, ...]] = ("tays",)

    every_s: float = 4.0
    """Seconds of a group of frames."""
    longest: int = 24
    """Most tokens of a sentence."""
    place: SaidPlace = "own"
    """Where a sentence counts its positions: own, as published, or behind, gap, overlap."""
