"""Where the server tells what happens besides to its clients: webhooks, further receivers, an MQTT broker."""

import asyncio
from typing import TYPE_CHECKING

from onlooker.core.events import Alert
from onlooker.server.home_assistant import HomeAssistant
from onlooker.server.hooks import Hooks
from onlooker.server.settings import ServerSettings
from onlooker.server.stream import Event, Stream
from onlooker.server.webhooks import Webhook, alert_event

if TYPE_CHECKING:
    from onlooker.server.service import Service


class Outgoing:
    """All receivers of a server. `note` and `alerted` may be called from any thread and never wait."""

    def __init__(self, settings: ServerSettings) -> None:
        self.webhook = Webhook(*settings.webhook) if settings.webhook else None
        self.hooks = Hooks(settings.hooks)
        self.home = HomeAssistant(settings.mqtt) if settings.mqtt else None

    async def keep(self, service: "Service") -> None:
        """Keep the broker up to date, until it is cancelled."""
        while True:
            home = self.home
            if home is None:
                await asyncio.sleep(1.0)
                continue
            keeping = asyncio.create_task(home.keep(service))
            try:
                while self.home is home and not keeping.done():  # another takes its place when settings change
                    await asyncio.sleep(1.0)
                if keeping.done():
                    keeping.result()
            finally:
                keeping.cancel()

    def note(self, stream: Stream, event: Event) -> None:
        """Something happened on a stream."""
        if self.home is not None:
            self.home.note(stream, event)

    def alerted(self, stream: Stream | None, alert: Alert, stream_id: str) -> None:
        """A rule spoke."""
        if self.webhook is not None:
            self.webhook.send(alert_event(alert, stream_id))
        self.hooks.send(alert, stream_id)
        if self.home is not None and stream is not None:
            self.home.alerted(stream, alert)

    async def change(self, old: ServerSettings, new: ServerSettings) -> None:
        """Go over to new settings; receivers that did not change go on, and what waits for the others is still sent."""
        loop = asyncio.get_running_loop()
        if new.webhook != old.webhook:
            before, self.webhook = self.webhook, Webhook(*new.webhook) if new.webhook else None
            if before is not None:
                loop.run_in_executor(None, before.close)
        if new.hooks != old.hooks:
            past, self.hooks = self.hooks, Hooks(new.hooks)
            loop.run_in_executor(None, past.close)
        if new.mqtt != old.mqtt:
            home, self.home = self.home, None
            if home is not None:  # a broker knows one client of a name: the old one goes first
                await loop.run_in_executor(None, home.close)
            self.home = HomeAssistant(new.mqtt) if new.mqtt else None

    def close(self) -> None:
        """Send what waits, for some seconds."""
        for one in (self.webhook, self.hooks, self.home):
            if one is not None:
                one.close()
