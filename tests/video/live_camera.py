"""A camera for tests: pictures that carry the moment they were taken, sent as MPEG-TS over TCP or UDP.

As a program (`live_camera.py PORT BEGAN`) it serves one TCP port until it is killed.
"""

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
from video_clips import picture

FPS = 10
NUMBERS = 256
FORMS = {"mp4": {"movflags": "frag_keyframe+empty_moov"}, "flv": {"flvflags": "no_duration_filesize"}}


@dataclass(frozen=True)
class Taken:
    """Tells the age of a picture by its number: one number each tenth of a second, repeating after 25.6 s."""

    began_s: float

    def number_now(self) -> int:
        return int((time.monotonic() - self.began_s) * FPS) % NUMBERS

    def age_s(self, number: int) -> float:
        return (self.number_now() - number) % NUMBERS / FPS


class Wire:
    """A connection as a file that holds nothing back."""

    def __init__(self, camera: "Camera", connection: socket.socket) -> None:
        self._camera, self._connection = camera, connection
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._connection.sendall(data)
        except OSError as error:
            self._error = error  # the muxer would go on as if nothing had happened
        return len(data)

    def wait(self, seconds: float) -> None:
        """Sleep; raises `Stopped` when the test is over, `OSError` when the other side has hung up."""
        if self._error is not None:
            raise self._error
        self._camera.wait(seconds)


class Stopped(Exception):
    """The test is over."""


class Camera:
    """A TCP port on loopback. Each connection is served by the next of `scripts`, the last one by all further ones."""

    def __init__(self, *scripts: Callable[["Camera", socket.socket], None], port: int = 0) -> None:
        self.taken = Taken(time.monotonic())
        self.num_connections = 0
        self._scripts = scripts
        self._stopped = threading.Event()
        self._server = socket.create_server(("127.0.0.1", port))
        self._server.settimeout(0.1)
        self.port = self._server.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Camera":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._thread.join()
        self._server.close()

    def wait(self, seconds: float) -> None:
        """Sleep; raises `Stopped` when the test is over."""
        if self._stopped.wait(seconds):
            raise Stopped

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            script = self._scripts[min(self.num_connections, len(self._scripts) - 1)]
            self.num_connections += 1
            with connection, contextlib.suppress(OSError, Stopped):
                connection.settimeout(2.0)
                script(self, connection)


def film(seconds: float = 1e9, first_pts_s: float = 0.0) -> Callable[[Camera, socket.socket], None]:
    """A script: send pictures of now for some seconds, then close. Stamps begin at `first_pts_s`."""

    def script(camera: Camera, connection: socket.socket) -> None:
        wire = Wire(camera, connection)
        send(wire, camera.taken, wire.wait, seconds, first_pts_s)

    return script


def reset() -> Callable[[Camera, socket.socket], None]:
    """A script: film, then stamps start anew, then leap an hour ahead, on one connection."""

    def script(camera: Camera, connection: socket.socket) -> None:
        wire = Wire(camera, connection)
        for first_pts_s in (500.0, 1.0, 3600.0):
            send(wire, camera.taken, wire.wait, 1.5, first_pts_s)

    return script


def half_open(seconds: float) -> Callable[[Camera, socket.socket], None]:
    """A script: film for some seconds, then neither send nor close."""

    def script(camera: Camera, connection: socket.socket) -> None:
        wire = Wire(camera, connection)
        send(wire, camera.taken, wire.wait, seconds, 0.0)
        silent(camera, connection)

    return script


def stutter(seconds: float, pause_s: float) -> Callable[[Camera, socket.socket], None]:
    """A script: film, then hold the pictures back for `pause_s` while filming goes on, then send them all at once."""

    def script(camera: Camera, connection: socket.socket) -> None:
        wire, held, began = Wire(camera, connection), [], time.monotonic()

        class Valve:
            is_shut = False

            def write(self, data: bytes) -> int:
                held.append(bytes(data))
                if not self.is_shut:
                    wire.write(b"".join(held))
                    held.clear()
                return len(data)

        valve = Valve()

        def wait(left: float) -> None:
            valve.is_shut = seconds < time.monotonic() - began < seconds + pause_s
            wire.wait(left)

        send(valve, camera.taken, wait, 1e9, 0.0)

    return script


def silent(camera: Camera, connection: socket.socket) -> None:
    """A script: say nothing until the other side hangs up."""
    connection.settimeout(0.1)
    while True:
        camera.wait(0)
        with contextlib.suppress(TimeoutError):
            if not connection.recv(1 << 16):
                return


def garbage(camera: Camera, connection: socket.socket) -> None:
    """A script: bytes that are no video."""
    connection.sendall(bytes(range(7, 250)) * 2000)


def slam(camera: Camera, connection: socket.socket) -> None:
    """A script: reset the connection at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send(
    file,
    taken: Taken,
    wait: Callable[[float], None],
    seconds: float,
    first_pts_s: float,
    form: str = "mpegts",
) -> None:
    """Write pictures of now into `file` (or to an address), one each tenth of a second, as MPEG-TS or another form."""
    options = {"flush_packets": "1", "muxdelay": "0"} | FORMS.get(form, {})
    with av.open(file, "w", format=form, container_options=options) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size, stream.codec_context.thread_count = 5, 1
        stream.codec_context.time_base = Fraction(1, 1000)
        began = time.monotonic()
        for index in range(int(seconds * FPS)):
            wait(max(0.0, began + index / FPS - time.monotonic()))
            frame = av.VideoFrame.from_ndarray(picture(taken.number_now()), format="rgb24").reformat(format="yuv420p")
            frame.pts = int((first_pts_s + time.monotonic() - began) * 1000)
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))


def main() -> None:
    port, began = int(sys.argv[1]), float(sys.argv[2])
    camera = Camera(film(), port=port)
    camera.taken = Taken(began)
    with camera:
        threading.Event().wait()


if __name__ == "__main__":
    main()
