"""Sources that the server reads by itself: a camera that is lost and comes back, a file, an endless world."""

import contextlib
import http.server
import io
import threading
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from cameras import Camera, transport_stream
from PIL import Image
from ports import free_port
from running_server import WAIT_S, eventually, opened, running, web

from onlooker import models
from onlooker.engine import Engine
from onlooker.server.metrics import Metrics
from onlooker.server.settings import Source, StandingQuestion
from onlooker.server.sources import video_of


@pytest.fixture(scope="module")
def ts() -> bytes:
    return transport_stream()


def test_a_camera_is_followed_through_its_losses(pocket, ts):
    with Camera(ts) as camera:  # noqa: SIM117 - the server needs its address
        with running(pocket, sources=(Source("cam", camera.url),), source_fps=2.0) as server, server.client() as client:
            path = "/v1/streaming/sessions/cam"
            eventually(lambda: client.get(path).status_code == 200)
            eventually(lambda: client.get(path).json()["frames"] >= 2)
            assert client.post(f"{path}/ask", json={"question": "what is there now?"}).status_code == 200
            eventually(lambda: camera.connections >= 2)
            before = client.get(path).json()["frames"]
            eventually(lambda: client.get(path).json()["frames"] > before)
            states = set()
            with client.stream("GET", f"{path}/events?types=source", headers={"last-event-id": "0"}) as events:
                for line in events.iter_lines():
                    states |= {word for word in ("connecting", "live", "lost") if f'"state": "{word}"' in line}
                    if states == {"connecting", "live", "lost"}:
                        break
            refused = client.post(f"{path}/frame", content=b"x", headers={"content-type": "image/jpeg"})
            assert refused.status_code == 403 and client.delete(path).status_code == 403
            listed = client.get("/v1/streaming/sources").json()["sources"]
            assert listed[0]["name"] == "cam" and listed[0]["session_id"] == "cam"
    names = {"onlooker-live", "onlooker-source"}
    eventually(lambda: not names.intersection(thread.name for thread in threading.enumerate()))


def test_a_client_names_a_file_and_it_is_watched_at_its_pace(pocket, mp4):
    pages = {"/clip.mp4": (200, {"content-type": "video/mp4"}, mp4)}
    with web(pages) as address, running(pocket, allowed_hosts=("127.0.0.1",)) as server, server.client() as client:
        path = opened(client, source={"url": f"{address}/clip.mp4"}, fps=4)
        eventually(lambda: (now := client.get(path).json())["frames"] >= 4 and now["source"]["state"] == "live")
        eventually(lambda: client.get(path).json()["source"]["state"] == "ended")
        assert client.get(f"{path}/stats").json()["time_s"] > 7


def test_a_source_that_is_not_there_says_so_and_the_server_goes_on(pocket, tmp_path):
    named = (Source("film", str(tmp_path / "none.mp4")), Source("demo", "synthetic:3"))
    with running(pocket, sources=named) as server, server.client() as client:
        film, demo = "/v1/streaming/sessions/film", "/v1/streaming/sessions/demo"
        eventually(lambda: client.get(demo).status_code == 200 and client.get(demo).json()["frames"] >= 2)
        source = client.get(film).json()["source"]
        assert source["state"] == "lost" and "no such file" in source["why"]


class HttpCamera(http.server.BaseHTTPRequestHandler):
    """Sends JPEG after JPEG, five a second."""

    ends = threading.Event()

    def log_message(self, *_):
        pass

    def do_GET(self):
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (200, 40, 40)).save(file, "JPEG")
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.ends.wait(0.2):
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {file.tell()}\r\n\r\n"
                self.wfile.write(head.encode() + file.getvalue() + b"\r\n")


def test_a_camera_over_http_is_followed_though_it_comes_up_late(pocket):
    port = free_port()
    asked = StandingQuestion("count", "how many shapes are visible now?", every_s=0.1)
    named = (Source("door", f"http://127.0.0.1:{port}/mjpg", fps=4, questions=(asked,)),)
    with running(pocket, sources=named) as server, server.client() as client:
        door = "/v1/streaming/sessions/door"
        eventually(lambda: client.get(door).status_code == 200 and client.get(door).json()["source"]["state"] == "lost")
        HttpCamera.ends.clear()
        camera = http.server.ThreadingHTTPServer(("127.0.0.1", port), HttpCamera)
        serving = threading.Thread(target=camera.serve_forever, args=(0.05,))
        serving.start()
        try:
            eventually(lambda: (now := client.get(door).json())["frames"] >= 3 and now["source"]["state"] == "live")
            assert "standing_question" not in client.get("/metrics").text, "nothing is asked before there is a picture"
        finally:
            HttpCamera.ends.set()
            camera.shutdown()
            serving.join()
            camera.server_close()


def test_a_source_that_is_coming_up_is_waited_for(pocket):
    begins = threading.Event()

    def slow():
        begins.wait(WAIT_S)
        return pocket()

    with running(slow, loads=False, sources=(Source("demo", "synthetic"),)) as server, server.client() as client:
        eventually(lambda: server.server.started)
        for path in ("", "/stats", "/events", "/rules"):
            reply = client.get(f"/v1/streaming/sessions/demo{path}")
            assert reply.status_code == 503 and reply.json()["error"]["code"] == "source_starting"
            assert int(reply.headers["retry-after"]) > 0
        (listed,) = client.get("/v1/streaming/sources").json()["sources"]
        assert listed == {"name": "demo", "session_id": "demo", "state": "starting", "lag_s": None, "age_s": None} | {
            "stale": False, "warnings": [], "alert": None
        }  # fmt: skip
        assert client.get("/v1/streaming/sessions/other").status_code == 404
        begins.set()
        eventually(lambda: client.get("/v1/streaming/sessions/demo").status_code == 200)
        eventually(lambda: client.get("/v1/streaming/sources").json()["sources"][0]["state"] == "live")


def test_a_standing_question_may_wait_for_a_change(pocket, tmp_path):
    def film(colours: list[int]) -> str:
        place = str(tmp_path / f"{len(colours)}.mp4")
        with av.open(place, "w") as out:
            video = out.add_stream("libx264", rate=4)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
            for grey in colours:
                picture = np.full((64, 64, 3), grey, np.uint8)
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(video.encode())
        return place

    text = "how many shapes are visible now?"
    asked = (StandingQuestion("always", text, every_s=1.0), StandingQuestion("new", text, every_s=1.0, when="change"))
    source = Source("still", film([40] * 480), questions=asked)
    with (
        running(pocket, sources=(source,), source_fps=2.0, state=tmp_path / "state") as server,
        server.client() as client,
    ):

        def count(name: str) -> int:
            events = client.get("/v1/search", params={"kind": "answer", "limit": 500}).json()["events"]
            return sum(one["facts"]["standing"] == name for one in events)

        eventually(lambda: count("always") >= 5)
        assert count("new") == 1, "once, as nothing changes"
        told = client.get("/v1/streaming/config").json()["methods"]
        assert told["memory"].startswith("rekv") and all("/" not in one for one in told.values())


def test_a_file_is_asked_what_its_encoder_said_where_a_method_listens(tmp_path, mp4):
    """How often it said nothing is among the stream's figures."""
    (tmp_path / "film.mp4").write_bytes(mp4)
    source = Source("film", str(tmp_path / "film.mp4"))

    def listens() -> Engine:
        return Engine(models.load("pocket-naive"), encoder="full", compressor="codec:keep=8", memory="full")

    with running(listens, sources=(source,), source_fps=5.0) as server, server.client() as client:
        stats = "/v1/streaming/sessions/film/stats"
        eventually(lambda: client.get(stats).status_code == 200 and client.get(stats).json()["frames"] >= 4)
        found = client.get(stats).json()
        counted = server.service.metrics.text().decode()
    assert found["frames_unsaid"] < found["frames"] / 2, "the encoder was not asked"
    for reason in ("unprepared", "unsaid"):
        assert f'onlooker_frames_stood_in_total{{reason="{reason}"}}' in counted
    with video_of(io.BytesIO(mp4), 5.0, 10**6, codec=True) as frames:
        assert sum(frame.codec is not None and frame.codec.motion is not None for frame in frames) > 2


def test_a_camera_is_asked_what_its_encoder_said_where_a_method_listens(ts):
    """Pictures without it are those that begin a connection or were encoded anew."""

    def listens() -> Engine:
        return Engine(models.load("pocket-naive"), encoder="full", compressor="codec:keep=8", memory="full")

    with Camera(ts) as camera:  # noqa: SIM117 - the server needs its address
        with (
            running(listens, sources=(Source("cam", camera.url),), source_fps=5.0) as server,
            server.client() as client,
        ):
            stats = "/v1/streaming/sessions/cam/stats"
            eventually(lambda: client.get(stats).status_code == 200 and client.get(stats).json()["frames"] >= 6)
            found = client.get(stats).json()
    assert found["frames_unsaid"] < found["frames"], "the encoder was not asked"


def test_what_stood_in_stays_counted_when_a_session_ends():
    """By reason, like what was lost."""
    metrics: Any = Metrics("pocket-naive")
    ended = SimpleNamespace(lost={}, stats={"frames_unsaid": 3, "frames_unprepared": 1})
    metrics.forget(ended)
    metrics.forget(ended)
    assert metrics.stood_in == {"unprepared": 2, "unsaid": 6}
