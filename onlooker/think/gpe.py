"""Notes with positions of their own: input and output are counted apart (group position encoding, GPE).

Tong et al., "LLM as Effective Streaming Processor", Findings of ACL 2025 (arXiv 2505.16983): of what differs between
reading all at once and reading while writing, only input that attends to output does harm; so the input's positions go
on as if nothing were said, and the output counts from an offset of its own (0 by default). Here a note a segment that
frames never see (as `segment_notes`), whose tokens are placed by their own counter while they are decoded. Changed: the
offsets are the three of the paper and of Speak-While-Watching (zero, a gap of 10,000, the input's position), and the
question's words belong to the input. A model that was not trained so loses by it: the plumbing, and a control.
"""

from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.spans import SaidPlace
from onlooker.think.segment_notes import SegmentNotes


@dataclass(frozen=True)
class GPE(SegmentNotes):
    """Segment notes that count positions from zero."""

    realises: ClassVar[tuple[str, ...]] = ("gpe",)

    place: SaidPlace = "own"
    """Where a note counts its positions: own, gap, overlap, or behind everything."""
