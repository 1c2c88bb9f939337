"""Clients that vanish without a word: their connection stays, but nothing comes or goes through it any more."""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from running_server import WAIT_S, eventually, opened, push, running
from websockets.sync.client import connect

from onlooker.server.serve import end_when_silent
from onlooker.server.settings import Limits

QUICK = Limits(silence_s=1.5, send_s=1.5, receive_s=1.0, events_s=1.5)
"""Long enough for a client on a busy machine to answer a ping in time."""


class Wall:
    """A proxy on loopback that can stop passing anything on, in either direction, and keeps its connections open."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends, self.is_shut = threading.Event(), threading.Event()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        while not self._ends.is_set():
            # Shut, it reads nothing: what is sent to it stays unread in the kernel.
            watched = [self._listener, *([] if self.is_shut.is_set() else pairs)]
            for ready in select.select(watched, [], [], 0.02)[0]:
                if ready is self._listener:
                    near, _ = self._listener.accept()
                    far = socket.create_connection(("127.0.0.1", self._to))
                    pairs |= {near: far, far: near}
                    self._open += [near, far]
                elif ready in pairs and not self._pass_on(ready, pairs[ready]):
                    # Both ends may be ready at once: the other one is no pair any more then.
                    pairs.pop(pairs.pop(ready), None)

    def _pass_on(self, ready: socket.socket, to: socket.socket) -> bool:
        try:
            data = ready.recv(1 << 16)
            to.sendall(data)
        except OSError:
            return False
        return bool(data)

    def end(self) -> None:
        self._ends.set()
        self._thread.join()
        for one in (*self._open, self._listener):
            one.close()


@pytest.fixture(scope="module")
def quick(pocket):
    with running(pocket, QUICK) as server:
        yield server


@pytest.fixture
def wall(quick) -> Iterator[Wall]:
    wall = Wall(quick.port)
    yield wall
    wall.end()


def stream_of(quick, path: str):
    return quick.service.streams[path.rpartition("/")[2]]


def test_a_websocket_whose_client_vanished_is_closed(quick, wall, jpegs):
    with quick.client() as client:
        path = opened(client)
        push(client, path, jpegs[:2])
        stream = stream_of(quick, path)
        # A client that answers pings stays, however quiet it is.
        with connect(f"ws://127.0.0.1:{wall.port}{path}/socket", ping_interval=None) as socket_:
            socket_.recv(timeout=WAIT_S)
            eventually(lambda: stream.events.num_readers == 1)
            time.sleep(2.5 * QUICK.silence_s)
            assert stream.events.num_readers == 1
            socket_.send(json.dumps({"type": "ask", "id": "a", "question": "what is there now?"}))
            wall.is_shut.set()
            eventually(lambda: stream.events.num_readers == 0 and stream.questions == 0)
            wall.end()
        assert client.get(path).status_code == 200, "the session itself goes on"


def test_a_realtime_session_ends_with_its_vanished_client(quick, wall):
    before = set(quick.service.streams)
    with connect(f"ws://127.0.0.1:{wall.port}/v1/realtime?model=pocket", ping_interval=None) as socket_:
        assert json.loads(socket_.recv(timeout=WAIT_S))["type"] == "session.created"
        assert len(set(quick.service.streams) - before) == 1
        wall.is_shut.set()
        eventually(lambda: set(quick.service.streams) == before)
        wall.end()


def test_a_reply_of_events_ends_and_goes_on_where_it_was(quick, wall, jpegs):
    with quick.client() as client:
        path = opened(client)
        stream = stream_of(quick, path)
        reader = socket.create_connection(("127.0.0.1", wall.port))
        reader.sendall(f"GET {path}/events HTTP/1.1\r\nhost: 127.0.0.1:{wall.port}\r\n\r\n".encode())
        eventually(lambda: stream.events.num_readers == 1)
        wall.is_shut.set()
        eventually(lambda: stream.events.num_readers == 0)
        reader.close()
        push(client, path, jpegs[:2])
        with client.stream("GET", f"{path}/events", headers={"last-event-id": "0"}) as reply:
            lines = list(reply.iter_lines())  # it ends by itself, and the session lives
        assert lines.count("event: frame") == 2 and "event: closed" not in lines
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("tail", ["frame?pts=9", "ask"])
def test_a_body_that_stops_coming_is_given_up(quick, wall, jpegs, tail):
    with quick.client() as client:
        path = opened(client)
        push(client, path, jpegs[:1])
        kind = "application/json" if tail == "ask" else "image/jpeg"
        head = f"POST {path}/{tail} HTTP/1.1\r\nhost: 127.0.0.1:{wall.port}\r\ncontent-type: {kind}\r\n"
        sender = socket.create_connection(("127.0.0.1", wall.port))
        sender.sendall(f"{head}content-length: 5000\r\n\r\n".encode() + b"x" * 100)
        sender.settimeout(WAIT_S)
        assert sender.recv(100).startswith(b"HTTP/1.1 408")
        sender.close()
        assert stream_of(quick, path).questions == 0
        push(client, path, jpegs[1:2], start_s=20.0)


def test_connections_inherit_that_a_silent_machine_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end_when_silent(listener, 20.0, 30.0)
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as accepted:
            assert client.fileno() > 0 and accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_USER_TIMEOUT", 40_000)):
                if hasattr(socket, option):
                    assert accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) == value


def test_a_running_server_gives_up_silent_machines(quick):
    (server,) = quick.server.servers
    for listener in server.sockets:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
