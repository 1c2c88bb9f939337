"""A stream of bytes that comes once, made one that can be gone back in: what has come is kept in a temporary file."""

import tempfile
from collections.abc import Callable

MOST_BYTES = 1 << 32
"""The longest film kept in a temporary file."""
_CHUNK = 1 << 18


class Spool:
    """A file over `pull`, which returns the next bytes (at most as many as asked), or none at the end.

    `length` is the number of bytes to come, where it is known; without it nobody can go to the end. `close` is
    called when this is closed, `fault` says why `pull` ended too soon. It ends too soon itself after `most_bytes`.
    """

    def __init__(
        self,
        pull: Callable[[int], bytes],
        length: int | None = None,
        close: Callable[[], None] | None = None,
        fault: Callable[[], str | None] = lambda: None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._pull, self._length, self._close, self._most = pull, length, close, most_bytes
        self._why = fault
        self._is_full = False
        self._file = tempfile.TemporaryFile(prefix="onlooker-")  # noqa: SIM115 - closed with the source
        self._kept = self._position = 0
        self._has_ended = False

    @property
    def fault(self) -> str | None:
        """Why the bytes ended before they should have."""
        return f"more than the {self._most} bytes that can be kept came" if self._is_full else self._why()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer than asked where no more have come."""
        if self._position >= self._kept:
            self._fetch(self._position + 1)
        self._file.seek(self._position)
        data = self._file.read(_CHUNK if size < 0 else size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, and return it; -1 where it cannot be. What lies before it is waited for when it is read."""
        if whence == 2:
            if self._length is None:
                return -1  # nobody knows how long this is
            offset += self._length
        elif whence == 1:
            offset += self._position
        self._position = offset
        return offset

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def seekable(self) -> bool:
        """Whether one can go back: always."""
        return True

    def close(self) -> None:
        """Delete what was kept."""
        self._file.close()
        if self._close is not None:
            self._close()

    def _fetch(self, end: int) -> None:
        while self._kept < end and not self._has_ended:
            data = self._pull(_CHUNK)
            self._has_ended = not data
            if self._kept + len(data) > self._most:
                self._has_ended = self._is_full = True
                return
            self._file.seek(self._kept)
            self._file.write(data)
            self._kept += len(data)


def needs_its_end(head: bytes) -> bool:
    """Whether a film begins with its pictures and ends with its index (an MP4 that was not written for streaming)."""
    place = 0
    while place + 8 <= len(head):
        size, kind = int.from_bytes(head[place : place + 4]), head[place + 4 : place + 8]
        if kind in (b"mdat", b"moov", b"moof") or size < 8:
            return kind == b"mdat"
        if place == 0 and kind not in (b"ftyp", b"free", b"wide", b"skip", b"pnot"):
            return False
        place += size
    return False
