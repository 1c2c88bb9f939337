"""An RTSP server for tests, run by the system's Python: `gst_camera.py PORT BEGAN`; pictures carry their moment."""

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

FPS, ROWS, COLS, BITS, NUMBERS = 10, 48, 64, 8, 256
LAUNCH = (
    f"( appsrc name=lens is-live=true format=time do-timestamp=true "
    f"caps=video/x-raw,format=GRAY8,width={COLS},height={ROWS},framerate={FPS}/1 ! videoconvert ! "
    "video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=1 ! "
    "rtph264pay name=pay0 pt=96 config-interval=1 )"
)


def picture(number):
    """The bits of a number from left to right, as `video_clips.picture` paints them."""
    row = b"".join((b"\xdc" if number >> bit & 1 else b"\x1e") * (COLS // BITS) for bit in range(BITS))
    return row * ROWS


class Factory(GstRtspServer.RTSPMediaFactory):
    """Media whose source is fed by a timer."""

    def __init__(self, began_s):
        super().__init__()
        self.began_s = began_s
        self.set_launch(LAUNCH)
        self.set_shared(True)

    def do_configure(self, media):
        """Start to feed."""
        lens = media.get_element().get_child_by_name("lens")
        GLib.timeout_add(1000 // FPS, self._feed, lens)

    def _feed(self, lens):
        number = int((time.monotonic() - self.began_s) * FPS) % NUMBERS
        return lens.emit("push-buffer", Gst.Buffer.new_wrapped(picture(number))) in (
            Gst.FlowReturn.OK,
            Gst.FlowReturn.FLUSHING,  # nobody plays it yet
        )


def main():
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    server.get_mount_points().add_factory("/cam", Factory(float(sys.argv[2])))
    server.attach(None)
    GLib.MainLoop().run()


main()
