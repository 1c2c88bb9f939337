"""Connections that have not asked anything yet: a deadline, a bound, and the greediest address first to go."""

import asyncio
from collections import Counter
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from onlooker.server.settings import Limits


class Waiting:
    """Connections without a request under way, oldest first: new ones, half-sent heads, and those kept alive.

    They cost a socket each and bring nothing yet. Beyond `most` of them, the oldest of the address that has the most
    is closed, so one machine that opens thousands crowds out nobody but itself.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Connection, None] = {}
        self._by_address: Counter[str] = Counter()
        self.crowded_out = 0
        """Connections closed because there were too many."""

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "Connection") -> None:
        """A connection waits for a request, from now on."""
        if connection in self._open:
            return
        self._open[connection] = None
        self._by_address[connection.address] += 1
        if len(self._open) > self._most:
            busiest = max(self._by_address, key=self._by_address.__getitem__)
            oldest = next(one for one in self._open if one.address == busiest)
            self.crowded_out += 1
            oldest.cut_off()

    def remove(self, connection: "Connection") -> None:
        """It has a request, or is gone."""
        if connection in self._open:
            del self._open[connection]
            self._by_address[connection.address] -= 1
            if not self._by_address[connection.address]:
                del self._by_address[connection.address]


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with a deadline for the head of a request, counted from its first byte or from the start."""

    waiting: Waiting
    head_s: float

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self._deadline: asyncio.TimerHandle | None = None
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._deadline = self.loop.call_later(self.head_s, self.cut_off)
        self.waiting.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_request()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._has_request()
        elif self._deadline is None:  # the first bytes of the next request on a connection that was kept alive
            self._deadline = self.loop.call_later(self.head_s, self.cut_off)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.waiting.add(self)
            if self.conn.trailing_data[0]:
                self._deadline = self.loop.call_later(self.head_s, self.cut_off)

    def _has_request(self) -> None:
        self.waiting.remove(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def cut_off(self) -> None:
        """Close, without a word: there is no request to answer."""
        self._has_request()
        self._unset_keepalive_if_required()
        self.transport.abort()


def connections_within(limits: Limits) -> type[Connection]:
    """The class of connections of one server, which share one `Waiting`."""
    return type("ServerConnection", (Connection,), {"waiting": Waiting(limits.waiting), "head_s": limits.head_s})
