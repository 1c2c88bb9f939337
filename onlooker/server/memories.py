"""What the named sources remember, kept on disk while they are watched, and gone on from at the next start.

One file a source, in the folder `memory` of the server's state: the session's tensors and thumbnails, with everything
else as JSON in the file's head, and a checksum over both. A file is replaced as a whole or not at all. A source loses
at most what it saw since its file was last written (`Retention.memory_every_s`, longer where writing takes longer).
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from onlooker.core.errors import InputError, OnlookerError
from onlooker.engine import Saved
from onlooker.server.logs import redact
from onlooker.server.refusals import Refusal
from onlooker.server.settings import Source
from onlooker.server.stream import Stream, StreamSettings

if TYPE_CHECKING:
    from onlooker.server.service import Service

LOG = logging.getLogger("onlooker.server")
SHARE = 0.25
"""Most of the time that is spent on writing one source's memory."""
THUMBNAILS = "thumbnails"
"""Name of the tensor that holds the thumbnails' bytes, beside those of the session."""


class Memories:
    """The files of the sources' memories. Its methods are called on the event loop."""

    def __init__(self, service: "Service", folder: Path) -> None:
        self._service, self._folder = service, folder / "memory"
        self._due: dict[str, float] = {}
        self._kept: dict[str, int] = {}
        """Frames that a source had seen when its file was written or read."""
        self.saved_s: dict[str, float] = {}
        """When each source's file was written, seconds since the epoch."""

    # --------------------------------------------------------------------------------------------------------- saving

    async def keep(self) -> None:
        """Save what changed, again and again; for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._service.settings.retention.memory_every_s / 4))
            for name, stream in self._endless():
                if time.monotonic() >= self._due.get(name, 0.0):
                    await self._save(name, stream)

    async def save_all(self, within_s: float) -> None:
        """Save every source once more, before an end; what is not done within so many seconds is left as it was."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for name, stream in self._endless():
                    await self._save(name, stream)

    def _endless(self) -> list[tuple[str, Stream]]:
        """Sources that have no end and are up. A film is watched from its beginning at every start."""
        watched = self._service.watched
        streams = [(one.name, self._service.streams.get(one.name)) for one in watched.sources]
        return [(n, stream) for n, stream in streams if stream and stream.state == "live" and watched.is_endless(n)]

    async def _save(self, name: str, stream: Stream) -> None:
        service = self._service
        retention = service.settings.retention
        session = stream.session
        if session is None or not session.frames or self._kept.get(name) == session.frames:
            return
        self._due[name] = time.monotonic() + retention.memory_every_s
        try:
            if stream.memory_bytes > retention.memory_bytes:
                most = f"{retention.memory_bytes} bytes of a source may be kept"
                raise InputError("its memory is too large to be kept", given=f"{stream.memory_bytes} bytes", do=most)
            saved, times, pictures, about = await asyncio.wrap_future(
                service.worker.call(lambda engine: _taken(stream, self._source(name)))
            )
            began = time.monotonic()
            await asyncio.to_thread(self._write, name, saved, times, pictures, about)
            self._due[name] = max(self._due[name], began + (time.monotonic() - began) / SHARE)
        except Refusal:
            return  # it ended meanwhile
        except (OSError, SafetensorError, OnlookerError) as error:
            service.metrics.failed("memory_file")
            LOG.error("what source %s remembers cannot be kept: %s", name, error)
        else:
            self._kept[name], self.saved_s[name] = saved.facts["frames"], about["wall"]
            stream.kept_s = saved.facts["time_s"]

    def _write(self, name: str, saved: Saved, times: list[float], pictures: list[bytes], about: dict[str, Any]) -> None:
        tensors = dict(saved.tensors) | {THUMBNAILS: _bytes(b"".join(pictures))}
        facts = saved.facts | {"about": about | {"times": times, "lengths": [len(one) for one in pictures]}}
        sealed = Saved(tensors, json.loads(json.dumps(facts))).sealed()
        # In a folder of the source's own: what a killed server was writing is found there, and removed.
        part = self._folder / f".{name}"
        shutil.rmtree(part, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.mkdir(mode=0o700)
        try:
            fresh = part / "fresh"
            save_file(sealed.tensors, fresh, metadata={"facts": json.dumps(sealed.facts)})
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.chmod(0o600)
            fresh.replace(self._file(name))
        finally:
            shutil.rmtree(part, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------ restoring

    async def open(self, source: Source, settings: StreamSettings) -> Stream:
        """A session for a source: one that goes on from its file, else a new one.

        A file that is damaged, of another model, or of another address is refused as a whole, and says why in the log.
        """
        service, name = self._service, source.name
        found = await asyncio.to_thread(self._read, source)
        if found is not None and self._kept.get(name) == found[0].facts["frames"] and name not in self.saved_s:
            # The session that was made from it has ended before it was saved again: it may be what ended it.
            LOG.error("source %s begins anew: its session did not last on what was kept", name)
            await asyncio.to_thread(self._set_aside, name)
            found = None
        if found is not None:
            saved, about, thumbnails = found
            try:
                stream = await service.open(
                    None, settings, lambda engine: engine.load(saved, trace=settings.trace), stream_id=name
                )
            except InputError as error:
                LOG.error("source %s begins anew, what was kept does not fit: %s", name, error)
                await asyncio.to_thread(self._set_aside, name)
            else:
                self._kept[name] = saved.facts["frames"]
                self.saved_s.pop(name, None)
                stream.go_on(saved.facts["time_s"], about["wall"])
                for time_s, picture in thumbnails:
                    stream.album.add(time_s, picture)
                LOG.info("source %s goes on at %.0f s of its stream", name, saved.facts["time_s"])
                return stream
        return await service.open(None, settings, stream_id=name)

    def _read(self, source: Source) -> tuple[Saved, dict[str, Any], list[tuple[float, bytes]]] | None:
        path = self._file(source.name)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            Saved(tensors, facts).verify()
            about = facts.pop("about")
            if about["address"] != _address(source):
                LOG.info("source %s has another address: it begins anew", source.name)
                path.unlink()
                return None
            data, thumbnails, start = tensors.pop(THUMBNAILS).numpy().tobytes(), [], 0
            for time_s, length in zip(about["times"], about["lengths"], strict=True):
                thumbnails.append((time_s, data[start : start + length]))
                start += length
            return Saved(tensors, facts, verified=True), about, thumbnails
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, OnlookerError) as error:
            LOG.error("source %s begins anew, what was kept is damaged: %s", source.name, error)
            self._service.metrics.failed("memory_file")
            self._set_aside(source.name)
            return None

    def forget(self, name: str) -> None:
        """A source is to begin anew: nothing of what it remembered is kept."""
        for known in (self._kept, self._due, self.saved_s):
            known.pop(name, None)
        with contextlib.suppress(OSError):
            self._file(name).unlink(missing_ok=True)
            (self._folder / f"{name}.damaged").unlink(missing_ok=True)

    def _set_aside(self, name: str) -> None:
        """Out of the way, but not lost: whoever wants to know what was wrong finds the last such file."""
        with contextlib.suppress(OSError):
            self._file(name).replace(self._folder / f"{name}.damaged")

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _source(self, name: str) -> Source:
        return next(one for one in self._service.watched.sources if one.name == name)


def _taken(stream: Stream, source: Source) -> tuple[Saved, list[float], list[bytes], dict[str, Any]]:
    """What is to be written of a stream; between two steps of the worker."""
    stream.check_live()
    assert stream.session is not None, "a stream is open before it is kept"
    saved = stream.session.export_unsealed()
    times, pictures = stream.album.all()
    wall = stream.wall_of(saved.facts["time_s"]) or time.time()
    return saved, times, pictures, {"address": _address(source), "wall": wall}


def _address(source: Source) -> str:
    """What tells two addresses apart, of which none can be read; another password is the same address."""
    return hashlib.sha256(redact(source.url).encode()).hexdigest()


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
