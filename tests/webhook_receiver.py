"""A webhook's receiver on loopback: answers as told, and checks every signature as a stranger would."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "a secret of enough characters"
Answer = int | tuple[int, dict[str, str]]


class Receiver:
    """What arrived: (id, timestamp, event) of every attempt; a wrong signature is in `forged`."""

    def __init__(self, answers: Callable[[int], Answer], key: bytes) -> None:
        self.arrived: list[tuple[str, int, dict]] = []
        self.came = threading.Event()
        self.forged = 0
        self._answers, self._key, self._lock = answers, key, threading.Lock()
        self.url = ""

    def take(self, headers, body: bytes) -> Answer:
        number, stamp = headers["webhook-id"], headers["webhook-timestamp"]
        signed = hmac.new(self._key, f"{number}.{stamp}.".encode() + body, hashlib.sha256).digest()
        with self._lock:
            if headers["webhook-signature"] != f"v1,{base64.b64encode(signed).decode()}":
                self.forged += 1
            self.arrived.append((number, int(stamp), json.loads(body)))
            self.came.set()
            return self._answers(len(self.arrived))


@contextmanager
def receiver(
    answers: Callable[[int], Answer] = lambda attempt: 200, key: bytes = SECRET.encode()
) -> Iterator[Receiver]:
    """A running receiver; `answers` says what the n-th attempt (from 1) is told."""
    taken = Receiver(answers, key)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = taken.take(self.headers, body)
            code, more = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(code)
            for name, value in {"content-length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    taken.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
