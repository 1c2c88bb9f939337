"""The methods of an engine: one of each kind, as configured and as they serve now."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from onlooker.core import kinds, registry
from onlooker.core.contracts import (
    Compressor,
    EncoderAccelerator,
    Gate,
    MemoryPolicy,
    Method,
    Refiner,
    Thinker,
)
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState

LARGE_STATE_BYTES = 2**20
"""Up to so many bytes a state is forked at every frame without a thought."""


class Methods:
    """One method of each kind that an engine has (`core/kinds.py`): what is given, else the default.

    Raises `InputError` for unknown kinds, methods or settings.
    """

    def __init__(self, given: Mapping[str, str | Method], defaults: Mapping[str, str] = MappingProxyType({})) -> None:
        known = kinds.of_engine()
        if unknown := sorted(set(given) - set(known)):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                "an engine has no such argument", given=unknown[0], do=f"{hint}methods are {', '.join(known)}"
            )
        made = {
            name: registry.make(name, given.get(name, defaults.get(name, kind.default))) for name, kind in known.items()
        }
        self.configured: Mapping[str, Method] = MappingProxyType(made)
        """The methods as they were configured, by kind; `use` may have put others in their place."""
        self._serving: dict[str, Any] = dict(made)

    @property
    def gate(self) -> Gate:
        """The gate in place."""
        return self._serving["gate"]

    @property
    def encoder(self) -> EncoderAccelerator:
        """The encoder in place."""
        return self._serving["encoder"]

    @property
    def compressor(self) -> Compressor:
        """The compressor in place."""
        return self._serving["compressor"]

    @property
    def memory(self) -> MemoryPolicy:
        """The memory in place."""
        return self._serving["memory"]

    @property
    def thinker(self) -> Thinker:
        """The thinker in place."""
        return self._serving["think"]

    @property
    def refiner(self) -> Refiner:
        """The refiner in place."""
        return self._serving["refiner"]

    @property
    def hears_codec(self) -> bool:
        """Whether any of them looks at what the video's encoder said."""
        return any(method.hears_codec for method in self.configured.values())

    def use(self, methods: Mapping[str, Method]) -> None:
        """Serve with other settings of the same methods."""
        self._serving.update(methods)

    def check(self, model: Any) -> frozenset[str]:
        """Raise `ModelError` when a method needs what the model does not offer; all that they need together."""
        for method in self.configured.values():
            method.check(model)
        self.refiner.check_memory(self.memory)
        self.thinker.check_memory(self.memory)
        return frozenset[str]().union(*(method.needs for method in self.configured.values()))

    def new_states(self) -> dict[str, StreamState]:
        """What the methods remember of a stream before its first frame, by kind."""
        return {kind: method.new_state() for kind, method in self._serving.items()}


def working_state(kind: str, state: StreamState, is_sure: bool) -> StreamState:
    """What a method may write into for the next frame; `is_sure` of the room for it."""
    if not vars(state):  # nothing is remembered
        return state
    known = kinds.KINDS.get(kind.partition(".")[0])  # an encoder has a state in every tower
    may_stay = is_sure and known is not None and known.renewable and not state.replaces
    return state if may_stay and state.exceeds(LARGE_STATE_BYTES) else state.fork()
