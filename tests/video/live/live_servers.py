"""Real servers and senders for live tests, from Debian packages; each ends with its `with` block."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from ports import free_port

NGINX_RTMP = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that Debian's gi belongs to
PATIENCE_S = 60.0


def need(program: str, package: str) -> str:
    """The path of a program; without it the test is skipped, naming the Debian package."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs the Debian package {package} (make test-live installs it)")
    return path


def need_nginx() -> str:
    program = need("nginx", "nginx-light")
    if not NGINX_RTMP.exists():
        pytest.skip("needs the Debian package libnginx-mod-rtmp (make test-live installs it)")
    return program


def need_rtsp() -> None:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True).returncode:
        pytest.skip(
            "needs the Debian packages python3-gi and gir1.2-gst-rtsp-server-1.0 (make test-live installs them)"
        )
    for element, package in (("x264enc", "gstreamer1.0-plugins-ugly"), ("rtph264pay", "gstreamer1.0-plugins-good")):
        code = (
            "import gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst; Gst.init(None); "
            f"raise SystemExit(Gst.ElementFactory.find('{element}') is None)"
        )
        if subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True).returncode:
            pytest.skip(f"needs the Debian package {package} (make test-live installs it)")


@contextlib.contextmanager
def running(command: list[str], ready_port: int | None = None, gently: bool = False) -> Generator[subprocess.Popen]:
    """A program that runs during the block, and is killed after it; `gently` where it has workers to end first."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while ready_port is not None:
            assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} did not start"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ready_port), 1.0):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        if gently:
            process.terminate()
        else:
            process.kill()
        process.wait(PATIENCE_S)


@contextlib.contextmanager
def rtsp_camera(port: int, began_s: float) -> Generator[subprocess.Popen]:
    """A GStreamer RTSP server whose pictures carry the moment they were taken (`live_camera.Taken`)."""
    need_rtsp()
    with running([SYSTEM_PYTHON, str(Path(__file__).with_name("gst_camera.py")), str(port), str(began_s)], port) as it:
        yield it


@contextlib.contextmanager
def nginx(folder: Path) -> Generator[tuple[str, str]]:
    """nginx as an RTMP broker that also cuts HLS; gives the addresses of both, to be followed by a name."""
    program, rtmp, http = need_nginx(), free_port(), free_port()
    for name in ("logs", "hls", "tmp"):
        (folder / name).mkdir()
    paths = " ".join(
        f"{one}_temp_path {folder}/tmp/{one};" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(f"""
        load_module {NGINX_RTMP}; daemon off; worker_processes 1; pid {folder}/nginx.pid;
        user root; error_log {folder}/logs/error.log; events {{ worker_connections 64; }}
        rtmp {{ server {{ listen 127.0.0.1:{rtmp}; application live {{
            live on; hls on; hls_path {folder}/hls; hls_fragment 1s; hls_playlist_length 6s; }} }} }}
        http {{ access_log off; {paths}
            server {{ listen 127.0.0.1:{http}; location /hls {{ root {folder}; add_header Cache-Control no-cache;
                types {{ application/vnd.apple.mpegurl m3u8; video/mp2t ts; }} }} }} }}
    """)
    with running([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], http, gently=True):
        yield f"rtmp://127.0.0.1:{rtmp}/live", f"http://127.0.0.1:{http}/hls"


@contextlib.contextmanager
def pushing(clip: Path, *output: str) -> Generator[subprocess.Popen]:
    """ffmpeg sending a file over and over, at its own pace, until the sender is killed; it tries again when refused."""
    program = need("ffmpeg", "ffmpeg")
    send = [program, "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(clip), "-c", "copy", *output]
    again = 'while :; do "$@" & wait $!; sleep 0.2; done'
    trap = "trap 'kill $!; exit' TERM; "
    process = subprocess.Popen(
        ["sh", "-c", trap + again, "push", *send], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
