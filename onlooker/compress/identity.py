"""Keep every token: the reference that other compressors are measured against."""

from dataclasses import dataclass
from typing import ClassVar

from onlooker.core.contracts import Compressor
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass(frozen=True)
class Identity(Compressor):
    """No compression."""

    contract_exceptions: ClassVar[dict[str, str]] = {"engagement": "it is the identity"}

    def new_state(self) -> StreamState:
        """Nothing to remember."""
        return StreamState()

    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens as they came."""
        return tokens
