"""The parent's end of a reader process: start it, receive from it with a time limit, and be rid of it at any moment."""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onlooker.core.codec import CodecRecord
from onlooker.video.clip import MOST_BYTES
from onlooker.video.live_reader import HEADER, Job

_ROOT = str(Path(__file__).parents[2])
MAX_TEXT_BYTES = 1 << 16
MAX_CLIP_BYTES = 2 * MOST_BYTES
_DEATH_S = 5.0


@dataclass(frozen=True, slots=True)
class Message:
    """What a reader said; see `live_reader` for the kinds."""

    kind: str
    facts: dict[str, Any]
    image: np.ndarray | None = None
    data: bytes = b""
    codec: CodecRecord | None = None


class ReaderGone(Exception):
    """The reader process has ended without saying so, or stopped in the middle of a message."""


class Link:
    """One running reader. `receive` belongs to one thread, `kill` to any."""

    def __init__(self, job: Job, stall_s: float) -> None:
        """Start a reader; a message that is not complete `stall_s` seconds after it began is as good as a death."""
        self._stall_s = stall_s
        path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "onlooker.video.live_reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # FFmpeg's complaints repeat addresses with their passwords.
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        try:
            stdin = _pipe(self._process.stdin)
            stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it has died already; `receive` will tell
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the reader."""
        return self._process.pid

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, None when none began in time. Raises `ReaderGone`."""
        if not self._wait(max(0.0, timeout_s)):
            return None
        deadline = time.monotonic() + self._stall_s
        (length,) = HEADER.unpack(self._take(HEADER.size, deadline))
        if length > MAX_TEXT_BYTES:
            raise ReaderGone("the reader wrote nonsense")
        facts = json.loads(bytes(self._take(length, deadline)))
        kind = facts.pop("kind")
        if kind == "clip":
            if facts["size"] > MAX_CLIP_BYTES:
                raise ReaderGone("the reader wrote nonsense")
            return Message(kind, facts, data=bytes(self._take(facts["size"], deadline)))
        if kind != "frame":
            return Message(kind, facts)
        shape = facts.pop("shape")
        image = np.frombuffer(self._take(shape[0] * shape[1] * shape[2], deadline), np.uint8).reshape(shape)
        return Message(kind, facts, image, codec=self._record(facts.pop("codec", None), deadline))

    def _record(self, said: dict[str, Any] | None, deadline: float) -> CodecRecord | None:
        """What the encoder said of the picture that was just taken."""
        if said is None:
            return None
        blocks, motion, known = said.pop("blocks"), None, None
        if blocks is not None:
            rows, cols = blocks
            motion = np.frombuffer(self._take(rows * cols * 8, deadline), np.float32).reshape(rows, cols, 2)
            known = np.frombuffer(self._take(rows * cols * 4, deadline), np.float32).reshape(rows, cols)
        return CodecRecord(**said, motion=motion, known=known)

    def ask_clip(self, number: int, since_wall: float) -> None:
        """Have a clip cut, which comes as a message; any thread, one at a time. Does nothing if the reader is gone."""
        with contextlib.suppress(OSError, ValueError):
            stdin = _pipe(self._process.stdin)
            stdin.write(f"clip {number} {since_wall}\n".encode())
            stdin.flush()

    def kill(self) -> None:
        """End the reader at once; whoever receives from it gets `ReaderGone`."""
        self._process.kill()

    def close(self) -> None:
        """End the reader, wait until it is gone, and close the pipes."""
        self._process.kill()
        _pipe(self._process.stdout).close()
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        # One that hangs in a driver is reaped by Python when it is gone.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DEATH_S)

    def _wait(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(_pipe(self._process.stdout), select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def _take(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray(num_bytes)
        view = memoryview(data)
        while view:
            if not self._wait(max(0.0, deadline - time.monotonic())):
                raise ReaderGone("the reader stopped in the middle of a message")
            taken = os.readv(_pipe(self._process.stdout).fileno(), [view])
            if not taken:
                raise ReaderGone(self._cause())
            view = view[taken:]
        return data

    def _cause(self) -> str:
        try:
            status = self._process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return "the reader closed its output"
        return f"the reader died of signal {-status}" if status < 0 else f"the reader ended with status {status}"


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None
    return end
