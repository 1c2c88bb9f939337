"""`curvestream`'s memory filled without its score: every frame comes in, one in `whole` of them whole, the others
small, and the oldest leaves. The control of "which frames, and how large, is told by curvature"."""

from dataclasses import dataclass

from onlooker.core.state import StreamState
from onlooker.core.unread import Unread
from onlooker.memory._held import as_given, pooled, tokens_of
from onlooker.memory.curvestream import Curve, CurveStream


@dataclass(frozen=True)
class Alternating(CurveStream):
    """First in, first out, of alternating resolution."""

    whole: int = 2
    """One frame in so many is kept whole."""

    def absorb(self, new: Unread, state: StreamState) -> None:
        """Keep every frame, whole in its turn."""
        assert isinstance(state, Curve)
        if not state.take(new):
            return
        state.count += 1
        kept = new
        if state.count % self.whole:
            tokens = tokens_of(new)
            rows, cols = tokens.grid
            small = pooled(tokens, ((rows + 1) // 2, (cols + 1) // 2))
            kept = as_given(Unread(small, new.start_s, new.end_s), tokens)
        state.kept = [*state.kept, kept][-self.frames :]
