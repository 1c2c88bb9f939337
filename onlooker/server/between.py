"""Something with a session on the worker's thread, between two of its steps."""

import asyncio
from typing import Any

from onlooker.server.refusals import gone
from onlooker.server.service import Service, told
from onlooker.server.stream import Stream


async def between_steps(service: Service, stream: Stream, work: Any) -> Any:
    """What `work()` gives. Raises `Refusal`, also when the session has ended before its turn."""

    def guarded(engine: Any) -> Any:
        if stream.state != "live":
            raise gone(stream.id, stream.why_ended or stream.state)
        return work()

    try:
        return await asyncio.wrap_future(service.worker.call(guarded))
    except Exception as error:
        raise told(error) from error
