"""A window of so many frames for a clip-level method: `windowed(flashvid):frames=16`.

Methods written for whole clips (`flashvid`, `fastvid`, `holitom`, `longvlm`, `prunevid`, `sttm`, `vidcom2`, or
a `WindowMethod` of your own) run on windows of a stream and have a setting for it; this is the same by another way, for
those who compare windows and not methods. The look-ahead is that of the window: a frame is given out at most `frames`
less one later, and a question reads the window as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from onlooker.compress._clip import WindowMethod
from onlooker.compress.flashvid import FlashVID
from onlooker.core.contracts import Compress, Compressor, VideoModel
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Windowed(Compressor):
    """Another method, `frames` frames at a time."""

    whole_frames: ClassVar[bool] = True

    inner: Compressor = field(default_factory=FlashVID)
    """The clip-level method."""
    frames: int = 8
    """Frames that it looks at together."""

    def __post_init__(self) -> None:
        if not isinstance(self.inner, WindowMethod):
            raise InputError(
                "only a method that looks at several frames together can have a window",
                given=type(self.inner).__name__,
                do="use it as it is, or give flashvid, fastvid, holitom, longvlm, prunevid, sttm, vidcom2",
            )
        replace(self.inner, frames=self.frames)

    @property
    def _method(self) -> WindowMethod:
        assert isinstance(self.inner, WindowMethod)
        return replace(self.inner, frames=self.frames)

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - that of the inner one
        """What the method needs."""
        return self._method.needs

    @property
    def lookahead(self) -> int:
        """All but one frame of the window."""
        return self._method.lookahead

    def check(self, model: VideoModel) -> None:
        """So that an error names the method within."""
        self.inner.check(model)

    def less(self) -> Self | None:
        """The method within with less to do."""
        lighter = self.inner.less()
        return None if lighter is None else replace(self, inner=lighter)

    def new_state(self) -> StreamState:
        """That of the method within."""
        return self._method.new_state()

    def num_held(self, state: StreamState) -> int:
        """Frames of the window so far."""
        return self._method.num_held(state)

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The window, if this frame completes it."""
        return self._method.compress(tokens, state)

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """As the method within does for several streams."""
        return self._method.compress_streams(batch, states)

    def prepare(
        self, like: VisualTokens, most_streams: int, on_step: Callable[[str], None], capture: bool = True
    ) -> Compress:
        """As the method within does."""
        return self._method.prepare(like, most_streams, on_step, capture)

    def flush(self, state: StreamState) -> VisualTokens | None:
        """The window as it is."""
        return self._method.flush(state)
