"""What the language model reads at a question only: a frame's tokens, its picture, or a note."""

from dataclasses import dataclass, replace

from torch import Tensor

from onlooker.core.spans import SpanKind
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class Unread:
    """One block that a memory of tokens holds (`MemoryPolicy.holds_tokens`), as it came or as the memory made it of
    others. Nobody ever writes into its tensors."""

    content: VisualTokens | Tensor
    """Visual tokens; of a note its token ids, int64 `[tokens]`, or of a soft prefix its rows, `[tokens, hidden_dim]`;
    for models that take no tokens the picture, uint8 `[rows, cols, 3]`."""
    start_s: float
    """Stream time of the first frame in it, seconds."""
    end_s: float
    """Stream time of the last frame in it, seconds: a question as of an earlier moment does not read it."""
    kind: SpanKind = "vision"
    place_s: float | None = None
    """Stream time at which it is told and placed, seconds; None: where it began, as frames are."""

    @property
    def at_s(self) -> float:
        """Stream time by which it is put in order, seconds."""
        return self.start_s if self.place_s is None else self.place_s

    def owned(self) -> "Unread":
        """The same, in memory of its own: tokens may be views of what all streams of a step share. What describes whole
        frames (`VisualTokens.whole`) was for compressors, and stays behind."""
        content = self.content
        if isinstance(content, VisualTokens):
            return replace(self, content=replace(content, whole={}).owned())
        return replace(self, content=content.detach().clone())
