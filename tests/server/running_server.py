"""A real server on a thread of the test, around the pocket model, and pictures to push."""

import asyncio
import contextlib
import http.server
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import httpx2
import pytest
from opentelemetry.trace import TracerProvider
from PIL import Image

from onlooker.engine import SLO, Engine
from onlooker.server.app import create_app
from onlooker.server.config_file import ConfigFile
from onlooker.server.serve import Server
from onlooker.server.service import Service
from onlooker.server.settings import Limits, ServerSettings
from onlooker.world import make_episode

WAIT_S = 200.0
"""How long tests wait for what must happen: long, because the machine may be busy."""
PATIENT = SLO(first_token_s=60.0, step_s=0.2, most_load=1000.0, patience_s=1e6, most_questions=256)
"""What tests promise: on a busy machine nobody is refused and nothing degrades, but where a test is about that."""


@dataclass
class Running:
    """A server that runs, and where."""

    url: str
    port: int
    service: Service
    server: Server

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, timeout=WAIT_S, headers=headers)

    def end(self) -> None:
        """What SIGTERM does."""
        assert self.server._loop is not None
        self.server._loop.call_soon_threadsafe(self.server.end)


@contextlib.contextmanager
def running(
    make_engine: Callable[[], Engine],
    limits: Limits | None = None,
    *,
    loads: bool = True,
    config: ConfigFile | None = None,
    provider: TracerProvider | None = None,
    **settings,
) -> Iterator[Running]:
    """A server on a free port of this machine, ready unless told that it will not load."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        settings = {"slo": PATIENT} | settings
        configured = ServerSettings(model="pocket", port=port, limits=limits or Limits(), **settings)
        app = create_app(configured, make_engine, config, provider)
        server = Server(app, configured)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        here = Running(f"http://127.0.0.1:{port}", port, app.state.service, server)
        try:
            if loads:
                eventually(lambda: server.started and here.service.worker.is_ready)
            yield here
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the server does not end"


def eventually(holds: Callable[[], object], within_s: float = WAIT_S) -> None:
    """Wait until something holds."""
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def pocket() -> Callable[[], Engine]:
    """Makes engines around one pocket model, which is loaded once."""
    from onlooker import models

    model = models.load("pocket", device="cpu")
    return lambda: Engine(model)


@pytest.fixture(scope="session")
def shared(pocket) -> Iterator[Running]:
    """A server without keys that tests may share: each opens its own sessions."""
    with running(pocket) as server:
        yield server


@pytest.fixture
def client(shared: Running) -> Iterator[httpx2.Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def session(client: httpx2.Client) -> Iterator[str]:
    """The path of a new session."""
    path = f"/v1/streaming/sessions/{client.post('/v1/streaming/sessions', json={}).json()['session_id']}"
    yield path
    client.delete(path)


@pytest.fixture(scope="session")
def jpegs() -> list[bytes]:
    """Twelve seconds of Pocket World, a picture a second."""
    return [frame.jpeg() for frame in make_episode(4, "test", duration_s=12.0).frames(fps=1.0)]


@pytest.fixture(scope="session")
def mp4() -> bytes:
    """Eight seconds of Pocket World as a file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=4)
        video.width = video.height = 128
        video.pix_fmt = "yuv420p"
        for frame in make_episode(4, "test", duration_s=8.0).frames(fps=4):
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
        out.mux(video.encode())
    return file.getvalue()


@contextlib.contextmanager
def web(pages: dict[str, tuple[int, dict[str, str], bytes]]):
    """A web server on this machine; yields its address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def encoded(size: tuple[int, int], kind: str = "JPEG") -> bytes:
    """A plain picture of (width, height) pixels."""
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, kind)
    return file.getvalue()


def opened(client, **body) -> str:
    """The path of a new session."""
    reply = client.post("/v1/streaming/sessions", json=body)
    assert reply.status_code == 201, reply.text
    return f"/v1/streaming/sessions/{reply.json()['session_id']}"


def push(client: httpx2.Client, path: str, jpegs: list[bytes], start_s: float = 0.0) -> list[dict]:
    """Push pictures a second apart, and wait for each."""
    said = []
    for number, jpeg in enumerate(jpegs):
        reply = client.post(
            f"{path}/frame",
            params={"pts": start_s + number, "wait": True},
            content=jpeg,
            headers={"content-type": "image/jpeg"},
        )
        assert reply.status_code == 200, reply.text
        said.append(reply.json())
    return said
