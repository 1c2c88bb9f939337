"""Keep a deep beginning and the newest blocks, the one right before the other (Deep Forcing, on the input side).

"Deep Forcing", arXiv 2512.05081, for video that is generated: two to three fifths of the window never leave (10 of 21
latent frames), the oldest of the others do, and the kept beginning is moved in time to lie right before the rest: what
stands far away is looked at less. Here frames come in instead of going out. Changed: a block is one frame (or note) of
the stream, not a latent frame of four; the beginning is moved on all axes of its positions and ends where the rest
begins, where the paper moves time only and lets the two overlap by one frame; whole blocks stay, for the paper's choice
of single tokens (participative compression) see its own memory. With a short beginning this is also what StreamingT2V
(arXiv 2403.14773) keeps of a long video, its first frame beside the newest ones, without its cross-attention.
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
class DeepSink(MemoryPolicy):
    """The first blocks stay for good, the newest for a while."""

    realises: ClassVar[tuple[str, ...]] = ("deep_forcing", "streamingt2v")

    window_frames: int = 21
    """Blocks kept behind the prompt, the first ones included."""
    sink_frames: int = 10
    """Blocks of the beginning that never leave."""

    def __post_init__(self) -> None:
        if not 0 <= self.sink_frames < self.window_frames:
            given = f"sink_frames={self.sink_frames}, window_frames={self.window_frames}"
            do = "for example deep_sink:window_frames=21,sink_frames=10"
            raise InputError("a window holds its sinks and at least one block more", given=given, do=do)

    def new_state(self) -> WindowState:
        """Counts of the window."""
        return WindowState()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """Forget the oldest blocks behind the sinks."""
        assert isinstance(state, WindowState)
        first = count_new(spans, state)
        return Plan(forget=oldest_beyond(spans, first + self.sink_frames, state, None, self.window_frames))
