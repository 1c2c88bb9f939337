"""How much a server takes on: sessions of a key and of all, and the bytes they hold."""

import logging
from typing import TYPE_CHECKING, Any

from onlooker.server.keys import Caller
from onlooker.server.refusals import overloaded

if TYPE_CHECKING:
    from onlooker.server.service import Service

LOG = logging.getLogger("onlooker.server")


def admit(service: "Service", owner: Caller) -> None:
    """Raise `Refusal` (429) where there is no room for one more session of a caller."""
    limits = service.limits
    mine = [stream for stream in service.streams.values() if stream.owner == owner.name]
    most = owner.sessions if owner.sessions is not None else service.settings.sessions_per_key
    private = sum(stream.owner is not None for stream in service.streams.values())
    if len(mine) >= most:
        service.metrics.refused("sessions_per_key")
        raise overloaded("too_many_sessions", f"your key has {len(mine)} sessions open, the most there may be", 10)
    if private >= limits.sessions:
        service.metrics.refused("sessions")
        raise overloaded("server_full", f"all {private} sessions are in use", 10)
    held = service.memory_bytes()
    if held >= limits.memory_bytes:
        service.metrics.refused("memory")
        raise overloaded("memory_full", f"sessions hold {held} bytes, the most they may", 30)


async def keep_within_memory(service: "Service") -> None:
    """End what holds the most while sessions hold more than they may; a named source is opened anew, empty."""
    held, most = service.memory_bytes(), service.limits.memory_bytes
    if held <= most:
        return
    largest = max(service.streams.values(), key=lambda stream: stream.memory_bytes)
    why = f"sessions held {held} bytes, {most} are allowed, and this one held the most ({largest.memory_bytes})"
    LOG.warning("session %s is ended: %s", largest.id, why)
    service.metrics.failed("memory")
    await service.close(largest, why)
    if service.memories is not None:
        service.memories.forget(largest.id)


def figures(service: "Service") -> dict[str, Any]:
    """What whoever places work among servers has to know of one (`placement`)."""
    stats = service.worker.stats
    return {
        "sessions": len(service.streams),
        "questions": service.worker.num_questions,
        "memory_bytes": service.memory_bytes(),
        "memory_limit_bytes": service.limits.memory_bytes,
        "load": 0.0 if stats is None else round(stats.load, 4),
    }
