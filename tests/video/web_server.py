"""A loopback server with the manners of servers: who cannot seek, who does not say how long, who hangs up, cameras."""

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator

import av
from live_camera import Camera, Stopped, Taken, send
from video_clips import picture


class WebServer:
    """Serves `files` (name to bytes) under /MANNER/NAME; `cameras` (path to function of a handler) otherwise."""

    def __init__(self, files: dict[str, bytes], cameras: dict[str, Callable[["Handler"], None]] | None = None) -> None:
        self.files, self.cameras = files, cameras or {}
        self.requests: list[str] = []
        self.stopped = threading.Event()
        self.taken = Taken(time.monotonic())
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.web = self  # pyright: ignore[reportAttributeAccessIssue]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "WebServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self, seconds: float) -> None:
        """Sleep; raises `Stopped` when the test is over."""
        if self.stopped.wait(seconds):
            raise Stopped


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def web(self) -> WebServer:
        return self.server.web  # pyright: ignore[reportAttributeAccessIssue]

    def do_GET(self):
        self.close_connection = True
        self.web.requests.append(self.path)
        manner, _, name = self.path[1:].partition("/")
        with contextlib.suppress(OSError, Stopped):
            if camera := self.web.cameras.get(self.path):
                camera(self)
            elif serve := MANNERS.get(manner):
                serve(self, self.web.files.get(name, b""))
            else:
                self.begin(404, Content_Length=0)

    def begin(self, code=200, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def say(self, data: bytes):
        self.wfile.write(data)
        self.wfile.flush()


def ranged(handler: Handler, data: bytes):
    """In order, but the connection is closed without a word of it."""
    start = int((handler.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
    handler.begin(206, Content_Length=len(data) - start, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.say(data[start:])


def short_winded(handler: Handler, data: bytes):
    """Hangs up after 10 kB each time, and can go on."""
    start = int((handler.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
    handler.begin(206, Content_Length=len(data) - start, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.say(data[start : start + 10_000])


def no_range(handler: Handler, data: bytes):
    handler.begin(Content_Length=len(data))
    handler.say(data)


def no_length(handler: Handler, data: bytes):
    handler.begin(Connection="close")
    handler.say(data)


def chunked(handler: Handler, data: bytes):
    handler.begin(Transfer_Encoding="chunked")
    for start in range(0, len(data), 5000):
        piece = data[start : start + 5000]
        handler.say(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.say(b"0\r\n\r\n")


def cut(handler: Handler, data: bytes):
    handler.begin(Content_Length=len(data))
    handler.say(data[: len(data) * 2 // 3])


def with_password(handler: Handler, data: bytes):
    if handler.headers.get("Authorization") == "Basic YTpTRUNSRVQ=":  # a:SECRET
        return no_range(handler, data)
    return handler.begin(401, Content_Length=0, WWW_Authenticate='Basic realm="x"')


MANNERS = {
    "ranged": ranged, "short": short_winded, "norange": no_range, "nolength": no_length, "chunked": chunked, "cut": cut,
    "password": with_password,
    "circle": lambda handler, _: handler.begin(302, Location=handler.path, Content_Length=0),
    "tofile": lambda handler, _: handler.begin(302, Location="file:///etc/passwd", Content_Length=0),
    "broken": lambda handler, _: handler.begin(500, Content_Length=0),
    "page": lambda handler, _: no_range(handler, b"<!doctype html><title>camera</title>"),
}  # fmt: skip


def jpeg(number: int) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "yuvj420p", 1
    frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()])


def parts(fps: float, num: int = 1_000_000) -> Callable[[Handler], None]:
    """A camera that sends JPEG after JPEG, `num` on one connection."""

    def serve(handler: Handler):
        handler.begin(Content_Type="multipart/x-mixed-replace; boundary=frame", Connection="close")
        for data in _numbered(handler, num):
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
            handler.say(head + data + b"\r\n")
            handler.web.wait(1 / fps)

    return serve


def _numbered(handler: Handler, num: int) -> Iterator[bytes]:
    for _ in range(num):
        yield jpeg(handler.web.taken.number_now())


def snapshot(**headers: str) -> Callable[[Handler], None]:
    """A camera that shows what it sees now, once for each request."""

    def serve(handler: Handler):
        data = jpeg(handler.web.taken.number_now())
        handler.begin(Content_Type="image/jpeg", Content_Length=len(data), **headers)
        handler.say(data)

    return serve


def endless(container: str, seconds: float = 1e9) -> Callable[[Handler], None]:
    """A camera that sends a film which does not end."""

    def serve(handler: Handler):
        handler.begin(Content_Type="application/octet-stream", Connection="close")

        class Wire:
            error: OSError | None = None

            def write(self, data: bytes) -> int:
                try:
                    handler.say(data)
                except OSError as error:
                    self.error = error
                return len(data)

        wire = Wire()

        def wait(left: float) -> None:
            if wire.error:
                raise wire.error
            handler.web.wait(left)

        send(wire, handler.web.taken, wait, seconds, 0.0, container)

    return serve


__all__ = ["Camera", "WebServer", "endless", "parts", "snapshot"]
