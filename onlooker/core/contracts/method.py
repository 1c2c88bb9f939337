"""What every method is: settings, and a state for each stream."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from onlooker.core.contracts.model import VideoModel
from onlooker.core.errors import ModelError
from onlooker.core.state import StreamState


class Method(ABC):
    """Base of every interchangeable method: a frozen dataclass of settings."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Names a model must offer."""
    realises: ClassVar[tuple[str, ...]] = ()
    """Keys of the published systems (`onlooker/core/systems.toml`) that this method stands for."""

    hears_codec: ClassVar[bool] = False
    """Whether it looks at what the video's encoder said of a frame (`Frame.codec`): sources are asked for it then. A
    gate finds it on the frame, a compressor in `tokens.extras["codec"]`, an encoder in `said` of its states. Many
    sources say nothing."""

    @abstractmethod
    def new_state(self) -> StreamState:
        """What this method remembers about one stream before its first frame."""

    def less(self) -> Self | None:
        """This method with less to do, for times when all streams together are too much; None: there is no less.

        Streams go on with it from one frame to the next, and with this one again later: states fit both.
        """
        return None

    def check(self, model: VideoModel) -> None:
        """Raise `ModelError` when the model does not offer what this method needs."""
        self._check_offers(self.needs, model)

    def _check_offers(self, needs: frozenset[str], model: VideoModel) -> None:
        if missing := sorted(needs - model.offers):
            raise ModelError(
                f"{type(self).__name__} needs {', '.join(missing)}, which {model.spec.name} does not offer",
                given=f"the model offers {', '.join(sorted(model.offers)) or 'nothing special'}",
                do="choose another method or model (see: onlooker methods)",
            )
