"""A camera: an RTSP server of GStreamer that sends raw pictures of a file as H.264, again and again, as time passes.

    /usr/bin/python3 benchmarks/rtsp_film.py PORT FILE WIDTH HEIGHT FPS

serves `rtsp://127.0.0.1:PORT/cam`; run by the Python that Debian's `python3-gi` belongs to. FILE holds RGB pictures of
8 bits, one after another. Every second has a key frame.
"""

import sys
import time
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


class Film(GstRtspServer.RTSPMediaFactory):
    """Media that a timer feeds with the picture of the moment."""

    def __init__(self, pictures: list[bytes], size: tuple[int, int], fps: int) -> None:
        super().__init__()
        self.pictures, self.fps = pictures, fps
        self.set_launch(
            "( appsrc name=lens is-live=true format=time do-timestamp=true "
            f"caps=video/x-raw,format=RGB,width={size[0]},height={size[1]},framerate={fps}/1 ! videoconvert ! "
            f"video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} threads=1 ! "
            "rtph264pay name=pay0 pt=96 config-interval=1 )"
        )
        self.set_shared(True)

    def do_configure(self, media) -> None:
        """Start to feed."""
        GLib.timeout_add(1000 // self.fps, self._feed, media.get_element().get_child_by_name("lens"))

    def _feed(self, lens) -> bool:
        picture = self.pictures[int(time.monotonic() * self.fps) % len(self.pictures)]
        # Flushing: nobody plays it yet.
        return lens.emit("push-buffer", Gst.Buffer.new_wrapped(picture)) in (
            Gst.FlowReturn.OK,
            Gst.FlowReturn.FLUSHING,
        )


def main() -> None:
    """See the head of this file."""
    port, file, width, height, fps = sys.argv[1], *sys.argv[2:]
    size = int(width), int(height)
    data, length = Path(file).read_bytes(), size[0] * size[1] * 3
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    pictures = [data[start : start + length] for start in range(0, len(data), length)]
    server.get_mount_points().add_factory("/cam", Film(pictures, size, int(fps)))
    server.attach(None)
    GLib.MainLoop().run()


main()
