"""A camera for tests: a few seconds of Pocket World as an MPEG transport stream, sent again and again."""

import io
import socket
import threading
from collections.abc import Callable

import av
import numpy as np

from onlooker.world import make_episode


def transport_stream(seconds: float = 4.0, spoil: Callable[[np.ndarray], np.ndarray] = lambda image: image) -> bytes:
    """Pocket World as H.264 in an MPEG transport stream, ten pictures a second, every fifth a key frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as out:
        video = out.add_stream("libx264", rate=10)
        video.width = video.height = 128
        video.pix_fmt = "yuv420p"
        video.options = {"tune": "zerolatency", "g": "5"}
        for frame in make_episode(4, "test", duration_s=seconds).frames(fps=10):
            out.mux(video.encode(av.VideoFrame.from_ndarray(spoil(frame.image), format="rgb24")))
        out.mux(video.encode())
    return file.getvalue()


class Camera:
    """Sends the same seconds at their own pace to whoever connects, then hangs up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._ends = data, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Camera":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ends.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            with connection:
                piece = len(self._data) // 40
                for start in range(0, len(self._data), piece):
                    try:
                        connection.sendall(self._data[start : start + piece])
                    except OSError:
                        break
                    if self._ends.wait(0.1):
                        break
