"""Clips of alerts: cut from the encoded stream as it came, playable from their first picture, kept with the alert."""

import io
import json
import threading
import time
from concurrent.futures import Future

import av
import httpx2
import numpy as np
import pytest
from cameras import Camera, transport_stream
from running_server import eventually, running

from onlooker.core.errors import SourceError
from onlooker.respond import Rule
from onlooker.server.clips import WAITING, Clips
from onlooker.server.database import Attached, Database, Record, Retention, Wanted
from onlooker.server.settings import Source
from onlooker.video import LiveSettings
from onlooker.video.clip import Clip, PacketRing
from onlooker.video.live_keeper import Keeper
from onlooker.video.live_link import Message
from onlooker.video.live_place import locate_live
from onlooker.video.live_reader import HEADER, Job, LiveReader


@pytest.fixture(scope="module")
def ts() -> bytes:
    return transport_stream(seconds=4.0)


def pictures(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as video:
        return [frame.to_ndarray(format="yuv420p") for frame in video.decode(video=0)]


def ring_of(data: bytes, each_s: float = 0.1, **more) -> PacketRing:
    """A ring that was given a whole stream, its packets so many seconds apart from the time of day 1000 on."""
    container = av.open(io.BytesIO(data))
    stream = container.streams.video[0]
    ring = PacketRing(stream, **({"keep_s": 100.0} | more))
    for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
        ring.add(packet, 1000.0 + number * each_s)
    return ring


def test_a_clip_is_what_was_sent_bit_for_bit(ts):
    clip, sent = ring_of(ts).cut(0.0), pictures(ts)
    assert clip is not None and clip.media_type == "video/mp4"
    cut = pictures(clip.data)
    assert len(cut) == len(sent) and all(np.array_equal(*pair) for pair in zip(cut, sent, strict=True))


def test_a_clip_begins_at_the_key_frame_before(ts):
    sent = pictures(ts)
    clip = ring_of(ts).cut(1000.0 + 1.25)  # the twelfth picture; every fifth is a key frame
    assert clip is not None
    cut = pictures(clip.data)
    assert len(cut) == len(sent) - 10 and np.array_equal(cut[0], sent[10])


def test_whole_groups_go_first(ts):
    ring = ring_of(ts, keep_s=1.0)
    clip = ring.cut(0.0)
    assert clip is not None and 10 <= len(pictures(clip.data)) <= 15
    clip = ring_of(ts, most_bytes=len(ts) // 4).cut(0.0)
    assert clip is not None and len(pictures(clip.data)) % 5 == 0, "never from within a group"
    assert ring_of(ts, most_bytes=10).cut(0.0) is None


def test_stamps_that_begin_anew_begin_anew(ts):
    container = av.open(io.BytesIO(ts))
    stream = container.streams.video[0]
    packets = [packet for packet in container.demux(stream) if packet.size]
    ring = PacketRing(stream, 100.0)
    for number, packet in enumerate([*packets, *packets[:5]]):
        ring.add(packet, float(number))
    clip = ring.cut(0.0)
    assert clip is not None and len(pictures(clip.data)) == 5


def test_clips_wait_for_their_end_and_are_bounded():
    asked: list[tuple[str, float]] = []
    kept: dict[int, Clip] = {}

    def cut(stream: str, since: float) -> "Future[Clip | None] | None":
        asked.append((stream, since))
        made: Future[Clip | None] = Future()
        made.set_result(Clip(stream.encode(), "video/mp4") if stream != "pushed" else None)
        return made if stream != "film" else None

    clips = Clips(cut, kept.__setitem__)
    now = time.time()
    clips.add(1, "late", now - 9, now + 0.4)
    for number, name in enumerate(("film", "pushed", "soon"), 2):
        clips.add(number, name, now - 5, now)
    eventually(lambda: set(kept) == {1, 4})
    assert time.time() >= now + 0.4 and [name for name, _ in asked][-1] == "late"
    for number in range(WAITING + 3):
        clips.add(number, "never", now, now + 1000)
    assert clips.missed == 3
    clips.close()


def test_why_a_clip_cannot_be_cut_is_said(ts, caplog):
    refused: Future[Clip | None] = Future()
    refused.set_exception(
        SourceError("no clip of it can be cut", given="ValueError: no such codec in rtsp://me:pw@cam")
    )
    kept: dict[int, Clip] = {}
    clips = Clips(lambda stream, since: refused, kept.__setitem__)
    clips.add(7, "cam", 0.0, 0.0)
    eventually(lambda: clips.failed)
    clips.close()
    assert not kept and "alert 7 of source cam" in caplog.text and "no such codec" in caplog.text
    assert "pw" not in caplog.text


def test_a_reader_tells_why_it_cannot_cut(ts):
    out, ring = io.BytesIO(), ring_of(ts)
    ring._stream = object()  # which no file can hold
    facts = dict.fromkeys(("fps", "size", "connect_s", "began_s", "last_s"))
    reader = LiveReader(Job("", aspect="fit", transport="tcp", silence_s=1.0, max_lag_s=1.0, **facts), out)
    reader._ring = ring
    reader.clip(1, 0.0)
    told = json.loads(out.getvalue()[HEADER.size :])
    assert told["kind"] == "clip" and told["media_type"] is None and "codec_context" in told["why"]
    keeper = Keeper(locate_live("tcp://127.0.0.1:9", "tcp", None), LiveSettings(), None, must_start=False)
    keeper._clips[1] = made = Future()
    keeper._clipped(Message("clip", told))
    with pytest.raises(SourceError, match=r"no clip of it can be cut.*codec_context"):
        made.result(0)


def test_a_clip_goes_with_its_event(tmp_path):
    database = Database(tmp_path)
    numbers: list[int] = []
    written = threading.Event()

    def told(number: int) -> None:
        numbers.append(number)
        database.add(Attached(number, Clip(b"x" * 1000, "video/mp4")))
        written.set()

    database.add(Record("alert", "door", None, "old", {}, on_written=told))
    assert written.wait(200)
    eventually(lambda: database.find(Wanted())[0]["has_clip"])
    assert database.clip(numbers[0], None) == Clip(b"x" * 1000, "video/mp4")
    database.retention = Retention(days=1e-9)
    database.tidy()
    database.retention = Retention()
    assert database.clip(numbers[0], None) is None and database.find(Wanted()) == []
    database.add(Attached(numbers[0], Clip(b"late", "video/mp4")))  # its event is gone: it is left out
    database.add(Record("alert", "door", None, "new", {}))
    eventually(lambda: len(database.find(Wanted())) == 1)
    assert database.dropped == 0
    database.close()


def test_an_alert_of_a_camera_has_its_clip(pocket, ts, tmp_path):
    always = Rule.from_dict(
        {"name": "always", "prompt": "is there anything?", "threshold": 0.001, "clear": 0.0, "hold_s": 0}
    )
    with (
        Camera(ts) as camera,
        running(pocket, sources=(Source("cam", camera.url, rules=(always,)),), source_fps=2.0, state=tmp_path) as here,
        here.client() as client,
    ):
        found = lambda: first(client)  # noqa: E731
        eventually(lambda: found() and found()["clip"])
        reply = client.get(found()["clip"])
        assert reply.status_code == 200 and reply.headers["content-type"] == "video/mp4"
        sent = {picture.tobytes() for picture in pictures(ts)}
        cut = pictures(reply.content)
        assert len(cut) >= 5 and all(picture.tobytes() in sent for picture in cut)
        assert client.get("/v1/search/999999/clip").status_code == 404


def first(client: httpx2.Client) -> dict | None:
    events = client.get("/v1/search", params={"kind": "alert"}).json()["events"]
    return events[-1] if events else None
