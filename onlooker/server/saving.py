"""A session's memory, saved on the server and gone on from."""

import asyncio
import time
from typing import Any

from onlooker.core.errors import InputError
from onlooker.engine import Engine, Saved
from onlooker.server import snapshots
from onlooker.server.keys import Caller
from onlooker.server.refusals import Refusal
from onlooker.server.service import Service
from onlooker.server.stream import Stream, StreamSettings


async def save(service: Service, caller: Caller, stream: Stream) -> dict[str, Any]:
    """Save what a session remembers. Raises `Refusal`."""
    folder = service.snapshot_folder()

    def take(engine: Engine) -> Saved:
        stream.check_live()
        assert stream.session is not None
        return stream.session.export_unsealed()

    taken = await asyncio.wrap_future(service.worker.call(take))
    loop = asyncio.get_running_loop()
    name, size = await loop.run_in_executor(service.pool, snapshots.save, folder, caller, taken, service.limits)
    return {"snapshot": name, "bytes": size, "time_s": taken.facts["time_s"]}


async def restore(service: Service, caller: Caller, settings: StreamSettings, name: str) -> Stream:
    """A new session that goes on from a snapshot of this caller. Raises `Refusal`."""
    folder = service.snapshot_folder()
    saved = await asyncio.get_running_loop().run_in_executor(service.pool, snapshots.read, folder, caller, name)
    try:
        stream = await service.open(caller, settings, lambda engine: engine.load(saved, trace=settings.trace))
    except InputError as error:
        raise Refusal(422, "snapshot_damaged", f"snapshot {name!r} does not fit: {error}") from error
    if stream.last_time_s is not None:  # its clock goes on at the time of its last frame
        stream.began_s = time.monotonic() - stream.last_time_s
    return stream
