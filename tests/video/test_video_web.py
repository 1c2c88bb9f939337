"""Films and cameras behind http: the one is read to its last byte, the other is followed."""

import time
from dataclasses import replace

import pytest
from test_video_choice import NOISY
from video_clips import Clip, left_behind, number_of, open_files, write
from web_server import WebServer, endless, jpeg, parts, snapshot

from onlooker.core.errors import DamagedSource, InputError, SourceError
from onlooker.video import LiveSettings, open_live, open_video
from onlooker.video.spool import Spool, needs_its_end
from onlooker.video.web import ask

QUICK = LiveSettings(fps=None, waiting=100, stale_after_s=5.0, lost_after_s=15.0, retry_first_s=0.1, retry_most_s=0.2)

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("films")
    first = replace(NOISY, container_options={"movflags": "faststart"})
    pieces = replace(NOISY, container_options={"movflags": "frag_keyframe+empty_moov"})
    made = {
        "late.mp4": write(folder / "late.mp4", NOISY),
        "first.mp4": write(folder / "first.mp4", first),
        "pieces.mp4": write(folder / "pieces.mp4", pieces),
        "a.ts": write(folder / "a.ts", NOISY),
        "a.mkv": write(folder / "a.mkv", NOISY),
    }
    return {name: path.read_bytes() for name, path in made.items()}


@pytest.mark.parametrize("name", ["late.mp4", "first.mp4", "pieces.mp4", "a.ts", "a.mkv"])
@pytest.mark.parametrize("manner", ["ranged", "short", "norange", "nolength", "chunked"])
def test_a_film_is_read_to_its_last_picture_whatever_the_manners_of_the_server(manner, name, files):
    before = open_files()
    with WebServer(files) as server:
        with open_video(f"{server.url}/{manner}/{name}", fps=None, on_damage="raise") as source:
            assert not source.info.live
            assert [number_of(frame.image) for frame in source] == list(range(50))
        assert not source.report.damage and source.report.num_gaps == 0
        with open_video(f"{server.url}/{manner}/{name}", fps=None, start_s=1.0) as source:
            assert number_of(next(source).image) == 25
    assert not left_behind(before)


@pytest.mark.parametrize("name", ["first.mp4", "a.ts", "a.mkv"])
def test_bytes_that_were_promised_and_did_not_come_are_damage(name, files):
    with WebServer(files) as server:
        source = open_video(f"{server.url}/cut/{name}", fps=None)
        assert 10 < len(list(source)) < 50
        size = len(files[name])
        assert f"reading failed: the server sent {size * 2 // 3} of {size} bytes: it hung up" in source.report.damage
        with pytest.raises(DamagedSource, match="the server sent"):
            list(open_video(f"{server.url}/cut/{name}", fps=None, on_damage="raise"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing", "answers 404 Not Found.*check the path"),
        ("broken/x", "answers 500.*try again later"),
        ("password/first.mp4", "answers 401.*user and the password"),
        ("circle/x", "redirects in a circle"),
        ("tofile/x", "redirects to what is not http"),
        ("page/x", "a web page, not a video"),
        ("norange/x", "the server sent nothing"),
        ("cut/late.mp4", "the server sent [0-9]+ of [0-9]+ bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(path, words, files):
    before = open_files()
    with WebServer(files) as server, pytest.raises(SourceError, match=words):
        open_video(f"{server.url}/{path}", timeout_s=5.0)
    assert not left_behind(before)


def test_user_and_password_of_the_address_are_given_to_the_server_and_to_nobody_else(files):
    with WebServer(files) as server:
        address = server.url.replace("http://", "http://a:SECRET@")
        with open_video(f"{address}/password/first.mp4") as source:
            assert len(list(source)) == 2
        assert "SECRET" not in source.info.name
        with pytest.raises(SourceError) as caught:
            open_video(f"{address}/broken/x?key=SECRET")
    assert "SECRET" not in str(caught.value)


def test_a_playlist_that_has_ended_is_a_film(tmp_path):
    write(tmp_path / "a.m3u8", Clip(fps=10, num_frames=30, container="hls", codec_options={"g": "10"}))
    pieces = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with WebServer(pieces) as server:
        with open_video(f"{server.url}/ranged/a.m3u8", fps=None) as source:
            assert not source.info.live and source.info.duration_s == 3.0
            assert [number_of(frame.image) for frame in source] == list(range(30))
        pieces["a.m3u8"] = pieces["a.m3u8"].replace(b"#EXT-X-ENDLIST", b"")
        answer = ask(f"{server.url}/ranged/a.m3u8", 5.0)
        assert answer.kind == "playlist" and not answer.is_recorded
        answer.web.close()


def test_pictures_sent_one_after_another_are_a_camera_in_real_time_that_comes_back():
    with WebServer({}, {"/mjpg": parts(fps=5, num=6)}) as server, open_video(f"{server.url}/mjpg", fps=None) as source:
        assert source.info.live and source.info.codec == "mjpeg" and source.info.fps is None
        frames, began = [next(source)], time.monotonic()
        while server.requests.count("/mjpg") < 4 or len(frames) < 6:
            frames.append(next(source))
        took_s = time.monotonic() - began
    assert frames[0].time_s == 0.0
    assert took_s / 2 < frames[-1].time_s < took_s * 2, "the wall's clock, not 25 a second"
    assert source.report.notes == ["taken for a camera: its pictures are sent one after another"]
    assert source.report.num_guessed_times >= len(frames)


def test_a_picture_that_a_camera_shows_is_asked_for_again_and_again():
    with (
        WebServer({}, {"/now.jpg": snapshot()}) as server,
        open_video(f"{server.url}/now.jpg", fps=5.0) as source,
    ):
        assert source.info.live
        frames = [next(source) for _ in range(6)]
        ages = [server.taken.age_s(number_of(frame.image)) for frame in frames[-1:]]
    assert len({number_of(frame.image) for frame in frames}) >= 3 and max(ages) < 10.0
    assert source.report.notes == ["taken for a camera: one picture, asked for again and again"]


def test_a_photograph_is_one_picture():
    old = "Mon, 01 Jan 2024 00:00:00 GMT"
    with WebServer({"a.jpg": jpeg(7)}, {"/a.jpg": snapshot(Last_Modified=old), "/b.jpg": snapshot()}) as server:
        for path, live in (("/a.jpg", None), ("/b.jpg", False)):
            with open_video(server.url + path, fps=None, live=live) as source:
                assert not source.info.live and len(list(source)) == 1


@pytest.mark.parametrize(
    "form", ["mpegts", "mp4", pytest.param("flv", marks=SLOW), pytest.param("matroska", marks=SLOW)]
)
def test_a_film_without_an_end_is_a_camera(form):
    with (
        WebServer({}, {"/live": endless(form)}) as server,
        open_live(f"{server.url}/live", QUICK, wait=True) as source,
        open_video(f"{server.url}/live", fps=None) as found,
    ):
        assert found.info.live and next(found).time_s == 0.0
        frames = [next(source) for _ in range(10)]
        assert server.taken.age_s(number_of(next(found).image)) < 10.0
    assert [frame.time_s for frame in frames] == sorted({frame.time_s for frame in frames})


def test_live_may_be_decided_by_the_user(files):
    with WebServer(files, {"/mjpg": parts(fps=50, num=10)}) as server:
        with open_video(f"{server.url}/mjpg", fps=None, live=False, rate=5.0) as source:
            assert not source.info.live
            assert [frame.time_s for frame in source] == [number / 5 for number in range(10)]
            assert not source.report.damage
        with open_video(f"{server.url}/ranged/first.mp4", fps=None, live=True) as source:
            assert source.info.live
            times = [frame.time_s for frame in source]
        assert times[-1] > 1.0, "played out at its own pace, to its end"
    with pytest.raises(InputError, match="cannot be followed live"):
        open_video("clip.mp4", live=True)
    with pytest.raises(InputError, match="live, and nothing else"):
        open_video("rtsp://127.0.0.1/1", live=False)


def test_time_begins_with_the_first_picture_that_is_read():
    with (
        WebServer({}, {"/mjpg": parts(fps=10)}) as server,
        open_video(f"{server.url}/mjpg", fps=5.0, end_s=1.0) as source,
    ):
        time.sleep(1.5)  # a model is being loaded
        times = [frame.time_s for frame in source]
    assert times[0] == 0.0 and max(times) < 1.0


def test_a_spool_keeps_what_came_once_and_refuses_too_much():
    data = bytes(range(256)) * 40
    pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    spool = Spool(lambda size: pieces.pop(0) if pieces else b"")
    spool.seek(5000)
    assert spool.read(10) == data[5000:5010] and len(pieces) == 5
    assert spool.seek(0) == 0 and spool.read(20_000) == data[:6000]
    assert spool.seek(0, 2) == -1
    while spool.read():
        pass
    assert spool.tell() == len(data)
    small = Spool(lambda size: bytes(1000), most_bytes=4096)
    small.seek(10_000)
    assert small.read() == b"" and small.fault == "more than the 4096 bytes that can be kept came"
    spool.close(), small.close()


def test_where_the_index_of_an_mp4_lies(files):
    assert needs_its_end(files["late.mp4"][:512]) and not needs_its_end(files["first.mp4"][:512])
    assert not needs_its_end(files["a.ts"][:512]) and not needs_its_end(b"")
