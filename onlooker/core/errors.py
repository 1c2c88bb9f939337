"""Our exceptions, one family: each says what happened, what was given and what to do."""


class OnlookerError(Exception):
    """Base of every error a user can cause or meet. `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, what: str, *, given: str | None = None, do: str | None = None) -> None:
        self.what, self.given, self.do = what, given, do
        parts = [what] + ([f"given: {given}"] if given is not None else []) + ([f"try: {do}"] if do is not None else [])
        # What was given may hold half a character, and whoever prints the message must not fail of it.
        super().__init__("; ".join(parts).encode(errors="backslashreplace").decode())


class InputError(OnlookerError, ValueError):
    """An argument or a setting is wrong (exit code 2)."""

    exit_code = 2


class SourceError(OnlookerError):
    """A video source cannot be opened or holds no video (exit code 3)."""

    exit_code = 3


class DamagedSource(OnlookerError):
    """A source ended in damage: what could be decoded was delivered before (exit code 4)."""

    exit_code = 4


class ModelError(OnlookerError):
    """A model cannot be loaded, or model and method do not fit together (exit code 5)."""

    exit_code = 5


class CapacityError(OnlookerError):
    """A budget (bytes, tokens, sessions) would be exceeded (exit code 6)."""

    exit_code = 6


class SessionClosed(OnlookerError):
    """A session was used after it was closed (exit code 7)."""

    exit_code = 7
