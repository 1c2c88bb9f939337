"""Refusals: everything the server says no to, with a status, a stable code and a reason."""

from typing import Any

from starlette.exceptions import HTTPException

from onlooker.core.errors import CapacityError, InputError, ModelError, OnlookerError, SessionClosed, SourceError
from onlooker.engine.slo import Busy


class Refusal(HTTPException):
    """A request that is answered with an error. `code` is stable; `message` is for people.

    `retry_after_s` tells when the same request may succeed. (An `HTTPException`, so that the framework lets it through
    wherever it is raised.)
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(status, message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients expect it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}}

    def headers_told(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds, where there is one; a bearer challenge where a key is missing."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, round(self.retry_after_s)))}


def overloaded(code: str, message: str, retry_after_s: float) -> Refusal:
    """Too much of something: try again later."""
    return Refusal(429, code, message, retry_after_s=retry_after_s)


def draining() -> Refusal:
    """The server is about to end."""
    return Refusal(503, "draining", "the server is shutting down and takes no new work", retry_after_s=5)


def unknown_session(session_id: str) -> Refusal:
    """No such session, or not one of this key: which of the two is not told."""
    return Refusal(404, "session_not_found", f"there is no session {session_id[:80]!r}", param="session_id")


def gone(session_id: str, why: str) -> Refusal:
    """A session that ended."""
    return Refusal(410, "session_gone", f"session {session_id[:80]!r} has ended: {why}", param="session_id")


def of_error(error: BaseException) -> Refusal:
    """What a client is told of one of our errors. Anything else is a fault of ours, of which no detail leaves."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        return overloaded("engine_busy", str(error), error.retry_s)
    if isinstance(error, OnlookerError):
        status, code = _STATUS.get(type(error), (422, "refused"))
        return Refusal(status, code, str(error))
    return Refusal(500, "internal_error", "something went wrong in the server; its log tells more")


_STATUS: dict[type[OnlookerError], tuple[int, str]] = {
    InputError: (422, "invalid_input"),
    SourceError: (422, "source_unreadable"),
    ModelError: (422, "model_cannot"),
    CapacityError: (507, "memory_budget"),
    SessionClosed: (410, "session_gone"),
}
