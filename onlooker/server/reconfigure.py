"""A changed configuration, applied to a running server: what can change at once does, the rest is named."""

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import OnlookerError
from onlooker.server.addresses import Allowed
from onlooker.server.config import Faulty
from onlooker.server.keys import Keys
from onlooker.server.refusals import Refusal
from onlooker.server.settings import ServerSettings

if TYPE_CHECKING:
    from onlooker.server.service import Service

LOG = logging.getLogger("onlooker.server")
LIVE = ("keys", "named_keys", "allowed_hosts", "limits", "source_fps", "retention", "keep_sessions")
LIVE += ("webhook", "hooks", "mqtt")
"""Fields of `ServerSettings` that count at once; sources do as well."""


async def reconfigure(service: "Service") -> dict[str, Any]:
    """Read the file again and apply it: `{"applied": [...], "needs_restart": [...]}`.

    Raises `Refusal`: 409 without a file, 422 when it is wrong; then nothing is changed.
    """
    file = service.config
    if file is None:
        raise Refusal(409, "no_config", "this server was started without a configuration file (--config FILE)")
    try:
        wanted = await asyncio.to_thread(file.read)
        settings = wanted.server_settings(await asyncio.to_thread(file.keys, wanted), service.settings.worker)
        allowed, keys = Allowed(settings.allowed_hosts), Keys(settings.all_keys)
    except Faulty as error:
        raise Refusal(422, "invalid_config", "; ".join(error.faults)[:4000]) from error
    except OnlookerError as error:
        raise Refusal(422, "invalid_config", str(error)) from error
    old, needs_restart = service.settings, file.needs_restart(wanted)
    applied = [name for name in LIVE if getattr(old, name) != getattr(settings, name)]
    service.settings = replace(old, sources=settings.sources, **{name: getattr(settings, name) for name in LIVE})
    service.limits, service.allowed, service.keys, file.config = settings.limits, allowed, keys, wanted
    if service.history is not None:
        service.history.database.retention, service.history.sessions = settings.retention, settings.keep_sessions
    await service.outgoing.change(old, settings)
    await _close_orphans(service)
    applied += [f"sources.{name} {what}" for name, what in (await _apply_sources(service, settings)).items()]
    return {"applied": applied, "needs_restart": needs_restart}


async def _close_orphans(service: "Service") -> None:
    """A key that is known no longer has no sessions."""
    names = service.keys.names
    for stream in list(service.streams.values()):
        if stream.owner is not None and stream.owner not in names:
            await service.close(stream, "its key was removed")


async def _apply_sources(service: "Service", settings: ServerSettings) -> dict[str, str]:
    done = {}
    wanted = {source.name: source for source in settings.sources}
    for source in service.watched.sources:
        if source.name not in wanted:
            await service.watched.remove(source.name)
            done[source.name] = "removed"
    for source in wanted.values():
        if (what := await service.watched.put(source)) != "unchanged":
            done[source.name] = what
    return done
