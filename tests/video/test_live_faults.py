"""Live streams that hang, break, lie and come back: nothing is leaked, nothing stale is shown, everything is told."""

import contextlib
import functools
import gc
import http.server
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import live_camera
import numpy as np
import pytest
from live_camera import Camera, Taken, film, garbage, half_open, reset, silent, slam, stutter
from ports import free_port
from test_codec_motion import middle, pan
from video_clips import Clip, left_behind, num_threads, number_of, open_files, write

from onlooker.core.errors import InputError, SourceError
from onlooker.video import LiveEvent, LiveSettings, LiveSource, open_live, open_video

QUICK = LiveSettings(fps=None, stale_after_s=1.5, lost_after_s=3.0, retry_first_s=0.1, retry_most_s=0.3)
PATIENCE_S = 200.0


def panned(path: Path, more: threading.Event) -> Callable[[Camera, socket.socket], None]:
    """A script: half of a film whose window moves by two rows and four columns a picture, the rest when told to."""
    data = pan(path, bf="0").read_bytes()

    def script(camera: Camera, connection: socket.socket) -> None:
        connection.sendall(data[: len(data) // 2])
        while not more.is_set():
            camera.wait(0.01)
        connection.sendall(data[len(data) // 2 :])
        silent(camera, connection)

    return script


class Diary:
    """What a stream told of itself; waits until it told something."""

    def __init__(self) -> None:
        self.events: list[LiveEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: LiveEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.events]

    def wait(self, state: str, times: int = 1) -> LiveEvent:
        with self._changed:
            assert self._changed.wait_for(lambda: self.states.count(state) >= times, PATIENCE_S), self.events
            return [event for event in self.events if event.state == state][times - 1]

    def wait_for_all(self, *states: str) -> None:
        """Wait until these states were told in this order. Others may lie between them: on a machine with much to do
        a picture may be late (stale, live), or an attempt may fail (lost, connecting)."""

        def came() -> bool:
            told = iter(self.states)
            return all(state in told for state in states)

        with self._changed:
            assert self._changed.wait_for(came, PATIENCE_S), self.events


class Viewer:
    """Reads a stream on a thread of its own and remembers how old each picture was when it was shown."""

    def __init__(self, source: LiveSource, taken: Taken) -> None:
        self.ages_s: list[float] = []
        self.times_s: list[float] = []
        self._source, self._taken = source, taken
        self._thread = threading.Thread(target=self._view)
        self._thread.start()

    def _view(self) -> None:
        for frame in self._source:
            self.ages_s.append(self._taken.age_s(number_of(frame.image)))
            self.times_s.append(frame.time_s)

    def wait(self, num_more: int) -> None:
        goal = len(self.times_s) + num_more
        wait_until(lambda: len(self.times_s) >= goal)

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    gc.collect()
    files, threads, processes = open_files(), num_threads(), children()
    yield
    gc.collect()
    wait_until(lambda: set(children()) <= set(processes))
    assert not left_behind(files, threads)


@pytest.fixture
def serve():
    """Serve a folder over http on loopback; gives its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_hung_server_is_given_up_and_tried_again():
    diary = Diary()
    with Camera(silent) as camera:
        settings = LiveSettings(connect_s=1.0, retry_first_s=0.1, retry_most_s=0.1)
        with open_live(camera.url, settings, on_event=diary) as source:
            diary.wait("lost", 2)
            assert source.status().num_failures >= 2 and source.status().last_error
    assert diary.states[:4] == ["connecting", "lost", "connecting", "lost"] and diary.states[-1] == "ended"


def test_closing_does_not_wait_for_a_hung_server():
    with Camera(silent) as camera:
        source = open_live(camera.url, LiveSettings(connect_s=600.0))
        wait_until(lambda: camera.num_connections == 1)
        reading = threading.Thread(target=lambda: list(source))
        reading.start()
        source.close()
        reading.join(PATIENCE_S)
        assert not reading.is_alive() and source.state == "ended"
        source.close()
        assert list(source) == []


def test_a_half_open_stream_is_stale_then_lost_then_back():
    diary = Diary()
    with (
        Camera(half_open(2.5), film()) as camera,
        open_live(camera.url, QUICK, on_event=diary) as source,
    ):
        viewer = Viewer(source, camera.taken)
        diary.wait_for_all("live", "stale", "lost", "live")
        viewer.wait(5)
        source.close()
        viewer.join()
    assert diary.wait("stale").why == "no picture for 1.5 s"
    assert max(viewer.ages_s) < 3.0 and viewer.times_s == sorted(set(viewer.times_s))
    # The outage is in the session's time, as long as it was.
    assert max(after - before for before, after in zip(viewer.times_s, viewer.times_s[1:], strict=False)) > 2.5


def test_a_camera_behind_garbage_and_resets_is_found():
    diary = Diary()
    with (
        Camera(slam, garbage, slam, film()) as camera,
        open_live(camera.url, QUICK, on_event=diary) as source,
    ):
        diary.wait("live")
        assert number_of(next(source).image) >= 0
    assert diary.states.count("lost") == 3
    assert re.search("Invalid data|End of file", str(diary.wait("lost", 2).why))


def test_a_stream_that_stops_is_followed_again():
    diary = Diary()
    with (
        Camera(film(2.5), film(2.5), film()) as camera,
        open_live(camera.url, QUICK, on_event=diary) as source,
    ):
        viewer = Viewer(source, camera.taken)
        diary.wait_for_all("live", "lost", "live", "lost", "live")
        viewer.wait(3)
        status = source.status()
        source.close()
        viewer.join()
    assert status.num_connections == 3 and status.num_failures == 2 and status.last_error == "the stream ended"
    assert viewer.times_s == sorted(set(viewer.times_s)) and max(viewer.ages_s) < 3.0


def test_stamps_that_start_anew_and_leap_do_not_move_the_session():
    with Camera(reset()) as camera, open_live(camera.url, QUICK) as source:
        began, frames = time.monotonic(), []
        for frame in source:
            frames.append((time.monotonic() - began, frame))
            if source.report.num_clock_jumps >= 2 and len(frames) > 25:
                break
    offsets = [arrived - frame.time_s for arrived, frame in frames]
    assert max(offsets) - min(offsets) < 2.0
    assert all(abs(frame.wall_time_s - time.time()) < 60 for _, frame in frames)


def test_pictures_held_back_on_the_way_are_never_shown_as_new():
    diary = Diary()
    settings = LiveSettings(fps=None, stale_after_s=1.0, lost_after_s=20.0)
    with (
        Camera(stutter(1.5, 4.0)) as camera,
        open_live(camera.url, settings, on_event=diary) as source,
    ):
        viewer = Viewer(source, camera.taken)
        diary.wait_for_all("live", "stale", "live")
        wait_until(lambda: source.report.num_dropped > 5)  # what was held back
        viewer.wait(5)
        dropped = source.report.num_dropped
        source.close()
        viewer.join()
    assert "stale" in diary.states and "lost" not in diary.states and dropped > 5
    assert max(viewer.ages_s) < 2.5


def test_a_slow_reader_gets_the_newest_picture_and_the_rest_is_counted():
    with Camera(film()) as camera, open_live(camera.url, QUICK) as source:
        next(source)
        time.sleep(4.0)
        assert camera.taken.age_s(number_of(next(source).image)) < 2.0, "not the one that came after the first"
        report = source.report
        source.close()
    assert report.num_delivered == 2 and report.num_dropped >= 10
    assert report.num_decoded == report.num_delivered + report.num_skipped + report.num_dropped


def test_sampling_takes_one_picture_for_each_moment_over_all_connections():
    with (
        Camera(film(2.5), film()) as camera,
        open_live(camera.url, LiveSettings(fps=2.0, waiting=100, retry_first_s=0.1)) as source,
    ):
        times = [next(source).time_s for _ in range(9)]
        assert source.status().num_connections == 2
    moments = [int(time_s * 2 + 0.01) for time_s in times]
    assert moments == sorted(set(moments))


@pytest.mark.parametrize(("sign", "words"), [(signal.SIGKILL, "signal 9"), (signal.SIGSTOP, "no picture for 3 s")])
def test_a_reader_that_dies_or_hangs_is_replaced(sign, words):
    diary = Diary()
    before = children()
    with Camera(film()) as camera, open_live(camera.url, QUICK, on_event=diary) as source:
        diary.wait("live")
        (reader,) = set(children()) - set(before)
        os.kill(reader, sign)
        diary.wait_for_all("live", "lost", "live")
        assert words in str(diary.wait("lost").why)
        next(source)


def test_a_reader_does_not_outlive_its_parent():
    code = "import sys, os; from onlooker.video import open_live; s = open_live(sys.argv[1]); next(s); os._exit(9)"
    with Camera(film()) as camera:
        mark = f"{os.getpid()}-{camera.port}"  # others on this machine have readers too
        environment = os.environ | {"ONLOOKER_TEST": mark}
        done = subprocess.run([sys.executable, "-c", code, camera.url], env=environment, timeout=PATIENCE_S)
        assert done.returncode == 9

        def is_reading() -> bool:
            texts = []
            for process in Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    texts.append(process.read_bytes())
            return any(f"ONLOOKER_TEST={mark}".encode() in text for text in texts)

        wait_until(lambda: not is_reading())


def test_a_source_nobody_holds_any_more_ends():
    with Camera(film()) as camera:
        source = open_live(camera.url, QUICK)
        next(source)
        del source
        gc.collect()
        wait_until(lambda: not any(thread.name == "onlooker-live" for thread in threading.enumerate()))


def test_no_secret_is_told_anywhere(caplog):
    caplog.set_level(logging.DEBUG)
    diary, before = Diary(), children()
    with Camera(silent) as camera:
        url = f"rtsp://admin:SECRET@127.0.0.1:{camera.port}/cam?token=SECRET"
        settings = LiveSettings(connect_s=1.0, retry_first_s=5.0, retry_most_s=5.0)
        with open_live(url, settings, on_event=diary) as source:
            wait_until(lambda: camera.num_connections > 0)
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in set(children()) - set(before)]
            diary.wait("lost")
            told = [repr(source), repr(source.info), repr(source.status()), repr(diary.events), str(source.report)]
        with pytest.raises(SourceError) as caught:
            open_video(url, timeout_s=1.0)
    assert lines and not any(b"SECRET" in line for line in lines)
    told += [caplog.text, str(caught.value), repr(caught.value.__cause__)]
    assert not any("SECRET" in text for text in told)
    assert "rtsp://***@127.0.0.1" in caplog.text


def test_open_video_follows_a_live_address_once_it_has_shown_a_picture():
    with Camera(film()) as camera:
        with open_video(camera.url, fps=5.0, end_s=1.0) as source:
            assert source.info.live and source.info.size == (48, 64) and source.info.codec == "h264"
            times = [frame.time_s for frame in source]
        assert times and max(times) < 1.0
        with pytest.raises(InputError, match="begins now"):
            open_video(camera.url, start_s=3.0)
    with pytest.raises(SourceError, match="refused"):
        open_video(camera.url)


def test_mpegts_over_udp():
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    taken, stop = Taken(time.monotonic()), threading.Event()

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise live_camera.Stopped

    def sending() -> None:
        with contextlib.suppress(live_camera.Stopped):
            live_camera.send(f"{url}?pkt_size=1316", taken, wait, 1e9, 0.0)

    sender = threading.Thread(target=sending)
    sender.start()
    try:
        with open_live(url, QUICK) as source:
            ages = [taken.age_s(number_of(next(source).image)) for _ in range(10)]
    finally:
        stop.set()
        sender.join()
    assert max(ages) < 3.0


def test_a_playlist_with_an_end_is_played_at_its_own_pace(tmp_path, serve):
    write(tmp_path / "a.m3u8", Clip(fps=10, num_frames=30, container="hls", codec_options={"g": "10"}))
    with open_live(f"{serve(tmp_path)}/a.m3u8", LiveSettings(fps=None, waiting=100)) as source:
        began = time.monotonic()
        frames = list(source)
        took_s = time.monotonic() - began
        assert source.state == "ended" and source.status().why == "the stream ended"
    numbers = [number_of(frame.image) for frame in frames]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 29
    assert took_s >= frames[-1].time_s - frames[0].time_s - 0.5
    assert frames[-1].time_s == pytest.approx((numbers[-1] - numbers[0]) / 10, abs=0.2)


def test_a_film_over_http_is_read_to_the_last_picture(tmp_path, serve):
    write(tmp_path / "a.mp4", Clip(num_frames=40))
    with open_video(f"{serve(tmp_path)}/a.mp4", fps=None) as source:
        assert [number_of(frame.image) for frame in source] == list(range(40))


def rss() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.slow
def test_a_camera_killed_and_restarted_twenty_times_leaves_nothing_and_shows_nothing_stale():
    port = free_port()
    taken, diary = Taken(time.monotonic()), Diary()
    program = [sys.executable, live_camera.__file__, str(port), str(taken.began_s)]
    settings = LiveSettings(fps=None, stale_after_s=2.0, lost_after_s=4.0, retry_first_s=0.05, retry_most_s=0.2)
    source = open_live(f"tcp://127.0.0.1:{port}", settings, on_event=diary)
    viewer = Viewer(source, taken)
    seen: list[tuple[int, int, int]] = []
    try:
        for number in range(1, 21):
            camera = subprocess.Popen(program)
            try:
                diary.wait("live", number)
                viewer.wait(3)
                seen.append((num_threads(), len(open_files()), rss()))
            finally:
                camera.kill()
                camera.wait()
            diary.wait("lost", number)
        assert source.status().num_connections == 20
    finally:
        source.close()
        viewer.join()
    assert max(viewer.ages_s) < 2.5 and viewer.times_s == sorted(set(viewer.times_s))
    assert {counts[:2] for counts in seen} == {seen[0][:2]}
    assert seen[-1][2] - seen[4][2] < 1024, "kilobytes grown"


def test_what_the_encoder_says_comes_with_live_pictures_and_over_those_that_were_dropped(tmp_path):
    settings = LiveSettings(fps=None, waiting=1, codec=True, stale_after_s=PATIENCE_S, lost_after_s=2 * PATIENCE_S)
    more, until = threading.Event(), time.monotonic() + PATIENCE_S
    with Camera(panned(tmp_path / "a.ts", more)) as camera, open_live(camera.url, settings) as source:
        first, told = next(source), []
        more.set()
        while source.report.num_dropped < 6 and time.monotonic() < until:
            time.sleep(0.01)
        while sum(record.num_pictures for record in told) < 6:
            frame = next(source)
            told.append(frame.codec)
    assert first.codec is not None and first.codec.motion is None
    for record in told:
        passed = record.num_pictures
        assert middle(record) == pytest.approx((2 * passed, 4 * passed), abs=0.5)
        assert record.frame_type == "P" and np.median(record.known) == 1.0 and record.num_bytes > 0
    assert source.report.num_without_motion == 0
