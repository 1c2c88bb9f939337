"""What has changed since the last key frame, in words, and a summary now and then (ShareGPT4Video).

Chen et al., "ShareGPT4Video", NeurIPS 2024 (arXiv 2406.04325): a frame is a key frame when its embedding is less than
0.93 like that of the last key frame (looked at every two seconds); the first is described in full, each further one by
what happened since the one before, given the caption of that; a summary of the timed captions ends it. Comparing with
the last *chosen* frame catches slow drift, which comparing neighbours does not. Changed: the embedding is the mean of
the frame's visual tokens (no CLIP beside the model), captions are notes in the memory, and since a stream has no end
the summary comes after every few captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from onlooker.core.checks import number, whole
from onlooker.core.contracts import Moment, Thinker, Thought
from onlooker.core.events import Noted
from onlooker.core.state import StreamState


@dataclass
class KeyFrame(StreamState):
    """The last key frame; times in stream seconds."""

    replaces = True

    embedding: Tensor | None = None
    """Mean of its visual tokens, `[hidden_dim]`."""
    at_s: float = 0.0
    looked_s: float | None = None
    """When a frame was compared last."""
    since_summary: int = 0
    """Captions since the last summary."""
    summary_s: float = 0.0
    """What the next summary begins with."""


@dataclass(frozen=True)
class DeltaNotes(Thinker):
    """Differential captions with a running summary."""

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    realises: ClassVar[tuple[str, ...]] = ("sharegpt4video",)

    alike: float = 0.93
    """Cosine to the last key frame below which a frame is the next."""
    every_s: float = 2.0
    """Seconds from one comparison to the next."""
    summarise: int = 8
    """Captions after which they are summed up; 0 is never."""
    longest: int = 16
    """Most tokens of a caption; a summary may have twice as many."""
    prompt: str = "Describe what is there now."
    """What is asked about the first key frame."""
    change: str = "What has changed since then?"
    """What is asked about each further one, behind the caption of the one before."""

    def __post_init__(self) -> None:
        number("alike", self.alike, least=-1.0, most=1.0, do="0.93, as published")
        number("every_s", self.every_s, above=0.0, unit="seconds", do="2, as published")
        whole("summarise", self.summarise, least=0, most=64)
        whole("longest", self.longest, least=1, most=1024)

    def new_state(self) -> KeyFrame:
        return KeyFrame()

    def think(self, moment: Moment, notes: Sequence[Noted], state: KeyFrame) -> Thought | None:
        """A caption at a key frame; a summary when enough have come, where no caption is due."""
        # Half a millisecond of grace: times of frames are rounded.
        if moment.pooled is None or (
            state.looked_s is not None and moment.time_s - state.looked_s < self.every_s - 5e-4
        ):
            return None
        state.looked_s, now = moment.time_s, moment.pooled.float()
        if state.embedding is None or float(torch.cosine_similarity(now, state.embedding, dim=0)) < self.alike:
            first = state.embedding is None
            since_s, state.embedding, state.at_s = state.at_s, now, moment.time_s
            state.since_summary += 1
            told = [note.text for note in notes if note.kind == "thought"][-1:]
            prompt = self.prompt if first or not told else f"Before: {told[0]}\n{self.change}"
            return Thought(prompt, moment.time_s if first else since_s, moment.time_s, self.longest)
        if not self.summarise or state.since_summary < self.summarise:
            return None
        told = [note.text for note in notes if note.kind == "thought"][-state.since_summary :]
        since_s, state.summary_s, state.since_summary = state.summary_s, moment.time_s, 0
        return Thought(f"{' | '.join(told)}\nSum it up.", since_s, moment.time_s, 2 * self.longest)
