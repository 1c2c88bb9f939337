"""Every live source against a real server or sender on loopback."""

import itertools
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from live_camera import Taken
from live_servers import need, nginx, pushing, rtsp_camera, running
from ports import free_port
from test_codec_motion import middle, pan
from test_live_faults import Diary, Viewer, nothing_is_left_behind, rss
from video_clips import Clip, num_threads, number_of, open_files, write

from onlooker.core.frame import Frame
from onlooker.video import LiveSettings, LiveSource, open_live

pytestmark = pytest.mark.live
SETTINGS = LiveSettings(fps=None, waiting=8, connect_s=20.0, retry_first_s=0.2, retry_most_s=1.0)
assert nothing_is_left_behind  # the fixture also watches over these tests


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Twenty seconds of numbered pictures, ten a second, with a key frame each half second."""
    options = {"g": "5", "preset": "ultrafast", "tune": "zerolatency"}
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", Clip(fps=10, num_frames=200, codec_options=options))


def check_times(source: LiveSource, num: int = 15) -> list[Frame]:
    """Take pictures; their times agree with their numbers, and they come as they are taken."""
    frames = [next(source) for _ in range(num)]
    for before, after in itertools.pairwise(frames):
        passed = (number_of(after.image) - number_of(before.image)) % 200 / 10
        assert after.time_s > before.time_s
        # At the start several pictures come at once; where the clip begins anew there may be a small gap.
        if before.time_s > 2.0:
            assert after.time_s - before.time_s == pytest.approx(passed, abs=0.3)
    assert frames[-1].wall_time_s is not None and abs(frames[-1].wall_time_s - time.time()) < 5
    assert source.info.size == (48, 64) and source.state == "live"
    return frames


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp(transport):
    port, taken = free_port(), Taken(time.monotonic())
    settings = LiveSettings(fps=None, transport=transport, connect_s=20.0)
    with rtsp_camera(port, taken.began_s), open_live(f"rtsp://127.0.0.1:{port}/cam", settings) as source:
        ages = [taken.age_s(number_of(next(source).image)) for _ in range(20)]
        assert source.info.size == (48, 64) and source.info.codec == "h264"
    assert max(ages) < 3.0


def test_what_the_encoder_says_comes_over_rtsp(tmp_path):
    """The window of the film moves by a row and two columns a picture; the film begins anew after its last one."""
    film, port = pan(tmp_path / "film.mp4", per_frame=(1, 2), num=100, bf="0"), free_port()
    output = ["-f", "rtsp", "-rtsp_transport", "tcp", f"rtsp://127.0.0.1:{port}/cam"]
    listening = open_live(f"listen+rtsp://127.0.0.1:{port}/cam", replace(SETTINGS, codec=True))
    with listening as source, pushing(film, *output):
        told = [next(source).codec for _ in range(20)]
    assert told[0] is not None and told[0].motion is None
    moved = [record for record in told[1:] if record.num_intra == 0]
    assert len(moved) > 10
    for record in moved:
        assert middle(record) == pytest.approx((record.num_pictures, 2 * record.num_pictures), abs=0.6)


def test_rtmp_and_live_hls_through_nginx(clip, tmp_path):
    with nginx(tmp_path) as (rtmp, hls), pushing(clip, "-f", "flv", f"{rtmp}/cam"):
        with open_live(f"{rtmp}/cam", SETTINGS) as source:
            check_times(source, 30)
        with open_live(f"{hls}/cam.m3u8", SETTINGS) as source:
            frames = check_times(source, 60)
            assert source.report.num_dropped == 0, "a playlist's bursts are played out"
    assert frames[-1].time_s - frames[0].time_s > 4.0


@pytest.mark.parametrize(
    ("address", "target", "output"),
    [
        ("listen+rtsp://127.0.0.1:{}/cam", "rtsp://127.0.0.1:{}/cam", ["-f", "rtsp", "-rtsp_transport", "tcp"]),
        ("listen+rtmp://127.0.0.1:{}/live/key", "rtmp://127.0.0.1:{}/live/key", ["-f", "flv"]),
        ("listen+tcp://127.0.0.1:{}", "tcp://127.0.0.1:{}", ["-f", "mpegts"]),
    ],
    ids=["rtsp", "rtmp", "mpegts"],
)
def test_being_pushed_to_and_again_after_the_sender_came_back(clip, address, target, output):
    port, diary = free_port(), Diary()
    with open_live(address.format(port), SETTINGS, on_event=diary) as source:
        for number in (1, 2):
            with pushing(clip, *output, target.format(port)):
                diary.wait("live", number)
                check_times(source)
        assert source.status().num_connections == 2
    assert not any("key" in str(event.why) for event in diary.events)


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_mpegts(clip, kind):
    port = free_port(socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    address = f"{kind}://127.0.0.1:{port}"
    target = f"{address}?pkt_size=1316" if kind == "udp" else f"{address}?listen=1"
    with pushing(clip, "-f", "mpegts", target), open_live(address, SETTINGS) as source:
        check_times(source, 30)


def test_the_screen():
    display = f":{free_port() % 10000 + 100}"
    with running([need("Xvfb", "xvfb"), display, "-screen", "0", "320x240x24"]):
        with open_live(f"screen:{display}", LiveSettings(fps=5.0, retry_first_s=0.2)) as source:
            frames = [next(source) for _ in range(5)]
        assert frames[0].image.shape == (240, 320, 3)
        assert frames[-1].time_s - frames[0].time_s == pytest.approx(0.8, abs=0.7)


@pytest.mark.skipif(not Path("/dev/video0").exists(), reason="needs a camera at /dev/video0")
def test_a_webcam():
    with open_live("webcam:0", LiveSettings(fps=2.0)) as source:
        assert next(source).image.size


@pytest.mark.slow
def test_an_rtsp_camera_killed_and_restarted_twenty_times_leaves_nothing_and_shows_nothing_stale():
    port, taken, diary = free_port(), Taken(time.monotonic()), Diary()
    settings = LiveSettings(fps=None, stale_after_s=2.0, lost_after_s=4.0, retry_first_s=0.05, retry_most_s=0.2)
    source = open_live(f"rtsp://127.0.0.1:{port}/cam", settings, on_event=diary)
    viewer, seen = Viewer(source, taken), []
    lost = 0
    try:
        for number in range(1, 21):
            with rtsp_camera(port, taken.began_s):
                diary.wait("live", number)
                viewer.wait(3)
                seen.append((num_threads(), len(open_files()), rss()))
                lost = diary.states.count("lost")
            diary.wait("lost", lost + 1)
    finally:
        source.close()
        viewer.join()
    assert max(viewer.ages_s) < 2.5 and viewer.times_s == sorted(set(viewer.times_s))
    assert {counts[:2] for counts in seen} == {seen[0][:2]}
    assert seen[-1][2] - seen[4][2] < 1024, "kilobytes grown"


def test_a_camera_that_freezes_is_stale_and_then_left():
    port, taken, diary = free_port(), Taken(time.monotonic()), Diary()
    settings = LiveSettings(fps=None, stale_after_s=1.0, lost_after_s=3.0, connect_s=3.0, retry_first_s=0.1)
    with (
        rtsp_camera(port, taken.began_s) as camera,
        open_live(f"rtsp://127.0.0.1:{port}/cam", settings, on_event=diary) as source,
    ):
        diary.wait("live")
        camera.send_signal(signal.SIGSTOP)
        diary.wait("lost", 2)
        camera.send_signal(signal.SIGCONT)
        diary.wait("live", 2)
        assert taken.age_s(number_of(next(source).image)) < 2.5
    assert diary.states[:4] == ["connecting", "live", "stale", "lost"]
