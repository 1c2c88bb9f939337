"""Clip after clip leaves a summary that the next clip reads; a question chooses a few of them (VideoStreaming).

Qian et al., "Streaming Long Video Understanding with Large Language Models", NeurIPS 2024 (arXiv 2405.16009): a small
language model reads the last clip's memory, the frames of a clip (16), and summary tokens (4 a frame), whose states are
the clip's memory; of all clips the four whose indicators are most like the question's are read. Changed:

- trained there, not here: there are no summary tokens. The clip's last frames stand for them: by causal attention they
  saw the whole clip and the memory before it, so what they carry was propagated the same way;
- the model that answers reads the clips itself, once, instead of a second, smaller one;
- the indicator of a clip is the mean key of its memory, layer by layer, and the question asks with its own queries; no
  noise is drawn (Gumbel), the best are taken;
- the running clip and the last complete one's memory are always seen. The bank may be capped: then the oldest
  memories are forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall, Span, Tier
from onlooker.core.state import StreamState
from onlooker.memory._recent import prefix_length


@dataclass
class Clips(StreamState):
    """Blocks of one stream by clip."""

    seen: int = -1
    """Id of the last block counted."""
    running: list[int] = field(default_factory=list)
    """Frames of the clip that is not complete."""
    last: list[int] = field(default_factory=list)
    """The memory of the last clip, which is seen while watching."""
    num_parked: int = 0
    """Blocks of older memories."""


@dataclass(frozen=True)
class VideoStreaming(MemoryPolicy):
    """Summaries handed on from clip to clip, and recalled by clip."""

    realises: ClassVar[tuple[str, ...]] = ("videostreaming",)
    scores_layers: ClassVar[bool] = True

    clip: int = 16
    """Frames of a clip."""
    summary: int = 4
    """Frames at the end of a clip that are its memory."""
    topk: int = 4
    """Clips of which a question reads the memory, besides the last complete one's."""
    propagate: bool = True
    """Whether a clip sees the memory of the clip before it while it is read."""
    max_parked: int | None = None
    """Most blocks parked before the oldest are forgotten; None for no bound."""

    def __post_init__(self) -> None:
        if not 1 <= self.summary < self.clip or self.topk < 0 or (self.max_parked or 0) < 0:
            given = f"clip={self.clip}, summary={self.summary}, topk={self.topk}, max_parked={self.max_parked}"
            do = "1 <= summary < clip, for example video_streaming:clip=16,summary=4"
            raise InputError("a clip leaves some of its frames", given=given, do=do)

    def new_state(self) -> Clips:
        """No clip yet."""
        return Clips()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """When a clip is complete its first frames go, and the memory before it is parked. A note among the frames that
        go is a memory by itself."""
        assert isinstance(state, Clips)
        place = len(spans)
        while place and spans[place - 1].id > state.seen:
            place -= 1
        state.seen = spans[-1].id if spans else state.seen
        state.running = [*state.running, *(span.id for span in spans[place:] if span.kind != "prefix")]
        frames = [span.id for span in spans[len(spans) - len(state.running) :] if span.kind == "vision"]
        if len(frames) < self.clip:
            return Plan()
        gone = set(frames[: -self.summary])
        kept = [block for block in state.running if block not in gone]
        park = state.last if self.propagate else kept
        state.last, state.running = kept if self.propagate else [], []
        state.num_parked += len(park)
        surplus = 0 if self.max_parked is None else max(0, state.num_parked - self.max_parked)
        state.num_parked -= surplus
        lead = prefix_length(spans)
        gone |= {span.id for span in spans[lead : lead + surplus]}
        return Plan(park=tuple(block for block in park if block not in gone), forget=tuple(sorted(gone)))

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prompt, the best clips' memories, the last one's, and the running clip."""
        assert scores is not None, "clips are found by score"
        memories: list[list[int]] = []
        for place, span in enumerate(spans):
            if span.tier is Tier.HOST:  # between two memories there were frames that went
                if not memories or span.id != spans[memories[-1][-1]].id + 1:
                    memories.append([])
                memories[-1].append(place)
        means = [float(scores[memory].mean()) for memory in memories]
        best = sorted(range(len(memories)), key=lambda n: (-means[n], n))[: self.topk]
        seen = {place for n in best for place in memories[n]}
        return Recall(tuple(s.id for place, s in enumerate(spans) if s.tier is Tier.DEVICE or place in seen))
