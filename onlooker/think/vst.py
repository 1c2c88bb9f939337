"""A thought for every clip, from the clip and the thoughts before it (VST).

"Video Streaming Thinking" (VST), 2026 (arXiv 2603.12262): when a clip has come the model writes a thought, given its
earlier thoughts as text and the clip's frames, in the time before the next clip; a question is answered from the
thoughts and the newest clip, so that thinking costs no answer time. Pair it with a memory that keeps text long and
video short (`streaming_vlm:vision_s=8`). Changed: thoughts are notes in the memory instead of a prompt that is read
anew, and a clip in which hardly anything changed may go without. The published gains come of training (SFT, then RL).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Thought
from onlooker.core.events import Noted
from onlooker.think._segments import Segments


@dataclass(frozen=True)
class VST(Segments):
    """Thoughts that stay in the memory, each from its clip and the newest ones before."""

    realises: ClassVar[tuple[str, ...]] = ("vst",)

    earlier: int = 4
    """Thoughts that the next one is told; 0 is none."""

    def thought(self, since_s: float, until_s: float, notes: Sequence[Noted]) -> Thought:
        """About the clip alone, after the newest thoughts as text."""
        told = [note.text for note in notes if note.kind == "thought"][-self.earlier :] if self.earlier else []
        before = f"Notes so far: {' | '.join(told)}\n" if told else ""
        return Thought(f"{before}{self.prompt}", since_s, until_s, self.longest)
