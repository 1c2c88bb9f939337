"""Keep the prompt prefix and the newest blocks (StreamingLLM): constant memory, no long past.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024 (arXiv 2309.17453). Changed: the
sinks are the whole prompt prefix instead of the first four tokens; whole blocks leave instead of single tokens;
positions stay packed by moving the prefix up behind the window instead of renumbering the window at every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Span
from onlooker.core.state import StreamState
from onlooker.memory._recent import WindowState, count_new, oldest_beyond


@dataclass(frozen=True)
class SlidingWindow(MemoryPolicy):
    """Forget the oldest blocks behind the prefix as soon as the window is full."""

    realises: ClassVar[tuple[str, ...]] = ("streamingllm",)

    window_tokens: int | None = 8192
    """Most tokens kept behind the prefix; None for no bound."""
    window_frames: int | None = None
    """Most blocks kept behind the prefix; None for no bound."""

    def __post_init__(self) -> None:
        for name, value in (("window_tokens", self.window_tokens), ("window_frames", self.window_frames)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1", given=str(value), do="give a positive number, or None")
        if self.window_tokens is None and self.window_frames is None:
            raise InputError("a window without any bound", do="set window_tokens or window_frames, or use full")

    def new_state(self) -> WindowState:
        """Counts of the window."""
        return WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Forget what no longer fits."""
        assert isinstance(state, WindowState)
        first = count_new(spans, state)
        return Plan(forget=oldest_beyond(spans, first, state, self.window_tokens, self.window_frames))
