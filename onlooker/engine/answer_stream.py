"""An answer as it is written."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onlooker.core.events import Answer
from onlooker.engine.request import Request

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine


class AnswerStream:
    """An answer as it is written: iterate over pieces of text; `cancel()` stops it; `.answer` is the whole."""

    def __init__(self, engine: "Engine", request: Request) -> None:
        self._engine, self._request = engine, request

    def __iter__(self) -> Iterator[str]:
        while not self._request.done:
            for piece in self._engine.step_requests([self._request]):
                if piece:
                    yield piece

    def cancel(self) -> None:
        """Stop writing; what was written so far is the answer."""
        self._request.cancel()

    @property
    def answer(self) -> Answer:
        """The whole answer; finishes it first if need be."""
        for _ in self:
            pass
        return self._request.answer()
