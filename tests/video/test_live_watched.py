"""onlooker watch on a source that stalls: what is typed is answered at once, and never from an old picture unsaid."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from live_camera import Camera, Wire, send, silent
from video_clips import Clip, write

WATCH = [sys.executable, "-m", "onlooker", "watch"]
WAIT_S = 200.0


class Enough(Exception):
    """The camera was told to fall silent."""


def film_until(told: threading.Event) -> Callable[[Camera, socket.socket], None]:
    """A script: film until told, then neither send nor close."""

    def script(camera: Camera, connection: socket.socket) -> None:
        wire = Wire(camera, connection)

        def wait(seconds: float) -> None:
            wire.wait(seconds)
            if told.is_set():
                raise Enough

        with contextlib.suppress(Enough):
            send(wire, camera.taken, wait, 1e9, 0.0)
        silent(camera, connection)

    return script


class Watched:
    """The command at work: lines in through a terminal, lines of JSON out."""

    def __init__(self, source: str, model: object, *options: str) -> None:
        self._near, far = os.openpty()
        arguments = [*WATCH, source, "--json", "--model", str(model), "--device", "cpu", *options]
        self.process = subprocess.Popen(
            arguments, stdin=far, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"TERM": "dumb", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(far)

    def type(self, line: str) -> None:
        os.write(self._near, f"{line}\n".encode())

    def hear(self, wanted: Callable[[dict], bool]) -> dict:
        """The next line that is wanted; the test's own time limit is the process's."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if wanted(said := json.loads(line)):
                return said
        raise AssertionError("the command ended first")

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(WAIT_S)
        os.close(self._near)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def watching(source: str, model: object, *options: str) -> Iterator[Watched]:
    watched = Watched(source, model, *options)
    limit = threading.Timer(WAIT_S, watched.process.kill)
    limit.start()
    try:
        yield watched
    finally:
        watched.end()
        limit.cancel()


def answers(said: dict) -> bool:
    return said["event"] == "answer"


def test_a_question_to_a_stalled_camera_is_answered_at_once_and_says_how_old(tiny_folder):
    told = threading.Event()
    with Camera(film_until(told)) as camera, watching(camera.url, tiny_folder) as watched:
        watched.type("what is there?")
        while watched.hear(answers)["source"]["state"] != "live":  # a busy machine may be late with a picture
            watched.type("and now?")
        told.set()
        stale = watched.hear(lambda said: said["event"] == "source" and said["state"] == "stale")
        assert "no picture" in stale["why"]
        watched.type("and now?")
        answer = watched.hear(answers)
        assert answer["source"]["state"] != "live" and answer["source"]["silent_s"] >= 3.0
        lost = watched.hear(lambda said: said["event"] == "source" and said["state"] == "lost")
        assert "no picture" in lost["why"]
        watched.type("still there?")
        assert watched.hear(answers)["source"]["state"] != "live"


def test_a_question_is_answered_while_a_file_does_not_come(tiny_folder, tmp_path):
    """The second half of the file stays with the web server, and the decoder waits for it."""
    data = write(tmp_path / "clip.ts", Clip(num_frames=300, is_noisy=True)).read_bytes()
    gate = threading.Event()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data[: len(data) // 2])
                gate.wait(WAIT_S)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/clip.ts"
        with watching(address, tiny_folder) as watched:
            watched.type("what is there?")
            first = watched.hear(answers)
            time.sleep(2.0)
            watched.type("and now?")
            assert watched.hear(answers)["time_s"] >= first["time_s"]
            gate.set()
        server.shutdown()
