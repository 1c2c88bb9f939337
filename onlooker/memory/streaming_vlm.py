"""Keep sinks, a long window of text and a short window of video (StreamingVLM).

Xu et al., "StreamingVLM: Real-Time Understanding for Infinite Video Streams", ICLR 2026 (arXiv 2510.09608): 512 tokens
of sinks (the prompt and the first text), 512 tokens of the newest text, 16 seconds of video, contiguous positions. What
was seen goes soon, what was said about it stays: write it with `Session.note`. Changed: whole blocks leave, not single
tokens; text stays where it stood instead of moving into one block; nothing is rotated but what stays before the gap,
where the paper's code rotates everything at every step. The quality it reports needs its fine-tuned narrator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import NOTES, Plan, Span
from onlooker.core.state import StreamState


@dataclass(frozen=True)
class StreamingVLM(MemoryPolicy):
    """Video goes soon, what was said about it stays longer, and the beginning stays for good."""

    realises: ClassVar[tuple[str, ...]] = ("streamingvlm",)

    vision_s: float = 16.0
    """Seconds of video kept."""
    sink_tokens: int = 512
    """Most tokens of the beginning kept for good: the prompt and the first notes."""
    text_tokens: int = 512
    """Most tokens of the newest notes kept besides."""

    def __post_init__(self) -> None:
        for name, good in (
            ("vision_s", self.vision_s > 0),
            ("sink_tokens", self.sink_tokens >= 0),
            ("text_tokens", self.text_tokens >= 0),
        ):
            if not good:
                given = f"{name}={getattr(self, name)}"
                raise InputError("a window has a size", given=given, do="for example streaming_vlm:vision_s=16")

    def new_state(self) -> StreamState:
        """Nothing to remember: what is kept says it all, and it is bounded."""
        return StreamState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Forget video older than its window, and notes that fit neither the sinks nor the newest text."""
        now = spans[-1].end_s if spans else 0.0
        old = {span.id for span in spans if span.kind == "vision" and span.end_s <= now - self.vision_s}
        notes = [span for span in spans if span.kind in NOTES]
        prompt = sum(span.num_tokens for span in spans[:1] if span.kind == "prefix")
        kept = _fitting(notes, self.sink_tokens - prompt) | _fitting(reversed(notes), self.text_tokens)
        old |= {span.id for span in notes if span.id not in kept}
        # The newest block always stays, however small the windows are.
        return Plan(forget=tuple(span.id for span in spans[:-1] if span.id in old))


def _fitting(spans: Iterable[Span], room: int) -> set[int]:
    """Ids of the first blocks that fit together."""
    ids = set()
    for span in spans:
        room -= span.num_tokens
        if room < 0:
            break
        ids.add(span.id)
    return ids
