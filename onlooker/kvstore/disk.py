"""The third tier: bytes of parked blocks in memory-mapped files, in a folder of the caller's.

A file holds many blocks, is given its whole size before anything is written (so that a full disk is an error there and
then, and no fault while something is written), and has no name from the moment on that it is open: whatever ends the
process, nothing is left behind. It goes when the last block in it is gone.
"""

import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from onlooker.core.errors import CapacityError, InputError
from onlooker.core.sizes import num_bytes

FIRST_BYTES, MOST_BYTES = 1 << 20, 1 << 28
"""Of a stream's first file, and of any: each is twice as large as the one before."""
PARTS = 8
"""A file is at most such a share of all that a stream may have, so that little is lost to blocks that are gone."""
ALIGNED = 64


@dataclass(frozen=True)
class DiskTier:
    """Where a stream's blocks may go that its host budget does not hold."""

    folder: Path
    budget_bytes: int
    """Most bytes of files, of each stream."""

    @classmethod
    def of(cls, text: str) -> "DiskTier | None":
        """From `FOLDER:SIZE`, such as `/fast/kv:64GiB`; None for an empty text. Raises `InputError` for a folder that
        is not there or cannot be written to, and for no size."""
        if not text:
            return None
        folder, colon, size = text.rpartition(":")
        if not colon or not folder:
            raise InputError("a disk tier is a folder and a size", given=text, do="for example /fast/kv:64GiB")
        path, most = Path(folder).expanduser(), num_bytes(size)
        if not path.is_dir() or not os.access(path, os.W_OK):
            raise InputError("keys and values cannot be written there", given=folder, do="name a folder of yours")
        if most < 1:
            raise InputError("a disk tier has bytes", given=text, do="for example /fast/kv:64GiB")
        return cls(path, most)


class _Mapped(mmap.mmap):
    """The memory of one file. It closes itself when the last tensor over it is gone."""


@dataclass(eq=False)
class Disk:
    """The files of one stream. Forks write to files of their own and share the blocks that are there."""

    tier: DiskTier
    _files: "weakref.WeakSet[_Mapped]" = field(init=False, default_factory=weakref.WeakSet)
    _open: Tensor | None = field(init=False, default=None)
    """Memory of the file that is being filled."""
    _filled: int = field(init=False, default=0)
    _next_bytes: int = field(init=False, default=FIRST_BYTES)

    def num_bytes(self) -> int:
        """Bytes of all files that hold a block still, room to grow included."""
        return sum(map(len, self._files))

    def put(self, slab: Tensor) -> Tensor:
        """A copy of these bytes in a file, `[bytes]` as they were given. Raises `CapacityError` when the disk, or the
        stream's share of it, is full."""
        size = -(-slab.nbytes // ALIGNED) * ALIGNED
        if self._open is None or self._filled + size > len(self._open):
            self._open, self._filled = self._new_file(size), 0
        place = self._open[self._filled : self._filled + slab.nbytes]
        place.copy_(slab)
        self._filled += size
        return place

    def close(self) -> None:
        """Write no more; the file that is being filled goes with the last block in it."""
        self._open = None

    def _new_file(self, least: int) -> Tensor:
        """The memory of the next file. The one before may be freed by it."""
        self.close()
        left = self.tier.budget_bytes - self.num_bytes()
        size = min(max(least, min(self._next_bytes, self.tier.budget_bytes // PARTS)), max(least, left))
        size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if size > left:
            raise CapacityError(
                "the parked keys and values do not fit on the disk",
                given=f"{self.num_bytes()} bytes in use and {size} more needed, {self.tier.budget_bytes} allowed",
                do="allow more (FOLDER:SIZE), or let the memory forget (for example rekv:max_parked=...)",
            )
        try:
            with tempfile.TemporaryFile(dir=self.tier.folder, prefix="onlooker-kv-") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                memory = _Mapped(file.fileno(), size)
        except OSError as error:
            raise CapacityError(
                "keys and values cannot be written to the disk",
                given=f"{self.tier.folder}: {error.strerror or error}",
                do="free some space there, or name another folder",
            ) from error
        self._files.add(memory)
        self._next_bytes = min(2 * self._next_bytes, MOST_BYTES)
        return torch.frombuffer(memory, dtype=torch.uint8)
