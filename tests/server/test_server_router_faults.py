"""The router before a worker that ends in the middle: what was cut never looks whole, and health says what is so."""

import asyncio
import contextlib
import json
import socket
import threading

import httpx2
import openai
import pytest
from running_server import WAIT_S, eventually
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from onlooker.server.router import create_router
from onlooker.server.serve import Server
from onlooker.server.settings import ServerSettings, Source
from onlooker.server.workers import Place, Workers

READY = b'{"status": "ready", "sessions": 0, "questions": 0}'


class Fragile(Workers):
    """One worker, a plain socket server of the test: it answers the health check, and cuts everything else short."""

    def __init__(self, port: int) -> None:
        super().__init__([Place(0, "cpu", (Source("demo", "synthetic"),))], lambda place: [])
        self._port = port
        self.ended = asyncio.Event()

    async def run_one(self, place: Place) -> str:
        place.port = self._port
        await self.ended.wait()
        return "its end"


def cut_short(begun: socket.socket) -> None:
    """One request, answered in part."""
    with begun, contextlib.suppress(OSError):
        begun.settimeout(WAIT_S)
        answer_in_part(begun)
        # Closed with something unread, the system would reset the connection, and what was said might never arrive.
        begun.shutdown(socket.SHUT_WR)
        while begun.recv(4096):
            pass


def answer_in_part(begun: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += begun.recv(4096) or b"\r\n\r\n"
    if head.startswith(b"GET /readyz"):
        length = str(len(READY)).encode()
        begun.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: " + length + b"\r\n\r\n" + READY)
    elif b"upgrade: websocket" in head.lower():
        import base64
        import hashlib

        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        key = next(
            line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
        )
        assert lines[b"x-forwarded-for"] == b"127.0.0.1"
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        begun.sendall(
            b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
            + accept + b"\r\n\r\n\x81\x02{}"
        )  # fmt: skip
    else:
        kind = b"text/event-stream" if b"/events" in head or b"/chat/" in head else b"application/json"
        body = b'data: {"choices": []}\n\n' if kind == b"text/event-stream" else b'{"half":'
        size = hex(len(body))[2:].encode()
        begun.sendall(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: " + kind + b"\r\n\r\n"
            + size + b"\r\n" + body + b"\r\n"
        )  # fmt: skip


@pytest.fixture
def fragile():
    """A router before a worker that cuts everything short; and the worker's listener."""
    with socket.create_server(("127.0.0.1", 0)) as worker, socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_worker() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=cut_short, args=(worker.accept()[0],), daemon=True).start()

        threading.Thread(target=serve_worker, daemon=True).start()
        port = listener.getsockname()[1]
        settings = ServerSettings(model="pocket", port=port, sources=(Source("demo", "synthetic"),))
        started: list = []

        async def run() -> None:
            app = create_router(settings, Fragile(worker.getsockname()[1]))
            started.append(Server(app, settings))
            await started[0].serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: httpx2.get(f"{url}/readyz", timeout=WAIT_S).status_code == 200)
        yield url, worker
        started[0].should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_what_was_cut_does_not_look_whole(fragile):
    url, _ = fragile
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"{url}/v1/streaming/config", timeout=WAIT_S)
    said = []
    with (
        pytest.raises(httpx2.RemoteProtocolError),
        httpx2.stream("GET", f"{url}/v1/streaming/sessions/demo/events", timeout=WAIT_S) as reply,
    ):
        for line in reply.iter_lines():
            said.append(line)
    assert (
        "event: error" in said
        and json.loads(said[-1][6:] if said[-1] else said[-2][6:])["error"]["code"] == "worker_lost"
    )


def test_an_openai_client_gets_an_error(fragile):
    url, _ = fragile
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=WAIT_S) as client:
        chunks = client.chat.completions.create(
            model="pocket@demo", messages=[{"role": "user", "content": "what?"}], stream=True
        )
        with pytest.raises(openai.APIError, match="ended in the middle"):
            list(chunks)


def test_a_websocket_closes_with_an_error(fragile):
    url, _ = fragile
    with connect(f"ws{url[4:]}/v1/streaming/sessions/demo/socket") as ws, pytest.raises(ConnectionClosed) as closed:
        while True:
            ws.recv(timeout=WAIT_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


def test_a_router_without_workers_is_not_healthy(fragile):
    url, worker = fragile
    healthy = httpx2.get(f"{url}/healthz", timeout=WAIT_S)
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok", "workers": ["w0r1"]})
    assert healthy.headers["cross-origin-resource-policy"] == "same-origin"
    worker.shutdown(socket.SHUT_RDWR)
    eventually(lambda: httpx2.get(f"{url}/healthz", timeout=WAIT_S).status_code == 503)
    assert httpx2.get(f"{url}/readyz", timeout=WAIT_S).status_code == 503
    listed = httpx2.get(f"{url}/v1/streaming/sources", timeout=WAIT_S).json()["sources"]
    assert listed == [{"name": "demo", "session_id": "demo", "state": "starting"}]
    lost = httpx2.get(f"{url}/v1/streaming/sessions/demo", timeout=WAIT_S)
    assert lost.status_code == 503 and int(lost.headers["retry-after"]) > 0
    assert [one["id"] for one in httpx2.get(f"{url}/v1/models", timeout=WAIT_S).json()["data"]] == [
        "pocket",
        "pocket@demo",
    ]
