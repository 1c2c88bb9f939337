"""The method in plain steps of any shape; on a CPU, streams are shared out to the threads."""

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, VisionTower
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState

if TYPE_CHECKING:
    from onlooker.encode.stc_cacher import STCCacher


@dataclass(frozen=True)
class PlainSteps:
    """The method over one tower, in plain steps of any shape.

    A step is hundreds of operations on a few rows, which two threads do no faster than one. So each thread takes whole
    streams instead, and does everything of these alone.
    """

    method: "STCCacher"
    tower: VisionTower
    max_streams: int
    pool: ThreadPoolExecutor | None = None
    """Threads that streams are shared out to, each of which computes alone; None: everything in the caller's."""
    threads: int = 1

    @classmethod
    def ready(cls, method: "STCCacher", tower: VisionTower, like: Tensor, max_streams: int) -> "PlainSteps":
        """Steps for tokens like these, with a pool of threads where there is something to share out."""
        threads = min(torch.get_num_threads(), max_streams)
        if like.is_cuda or threads < 2:
            return cls(method, tower, max_streams)
        return cls(method, tower, max_streams, _lone_threads(threads), threads)

    def under(self, method: "STCCacher") -> "PlainSteps":
        """The same under other settings."""
        return dataclasses.replace(self, method=method)

    def encode(self, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """See `contracts.Prepared`."""
        if len(hidden) > self.max_streams:
            raise InputError(
                "more streams in one step than were prepared for",
                given=f"{len(hidden)}, prepared for {self.max_streams}",
                do="prepare for more streams, or use more steps",
            )
        if self.pool is None or len(hidden) == 1:
            return self.method.encode_plainly(self.tower, hidden, states)
        inference = torch.is_inference_mode_enabled()

        def run(streams: slice) -> Encoded:
            with torch.inference_mode(inference):
                return self.method.encode_plainly(self.tower, hidden[streams], states[streams])

        each = -(-len(hidden) // self.threads)
        return _joined(list(self.pool.map(run, (slice(b, b + each) for b in range(0, len(hidden), each)))))


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Streams computed apart, together."""
    shares = [part.recomputed for part in parts if part.recomputed is not None]
    taps = {number: torch.cat([part.taps[number] for part in parts]) for number in parts[0].taps}
    refreshed = tuple(flag for part in parts for flag in part.refreshed)
    return Encoded(torch.cat([part.hidden for part in parts]), taps, torch.cat(shares), refreshed)


def _lone_threads(count: int) -> ThreadPoolExecutor:
    """So many threads whose operations are not shared out further."""
    before, together = torch.get_num_threads(), threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread that was never asked takes over what all others have at its first work
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
    for _ in range(count):
        pool.submit(begin)
    together.wait()
    torch.set_num_threads(before)
    return pool
