"""Live addresses: what is one, how it is opened, and that no secret is ever shown."""

import pytest

from onlooker.core.errors import InputError, SourceError
from onlooker.video import LiveSettings, is_live, open_live
from onlooker.video.live_place import locate_live
from onlooker.video.live_state import pause_s
from onlooker.video.place import redact

LIVE = [
    "rtsp://cam/1", "RTSP://cam/1", "rtsps://cam/1", "rtmp://host/app/name", "udp://127.0.0.1:5000", "tcp://h:5000",
    "webcam:0", "webcam:", "screen:", "screen::1", "listen+rtsp://127.0.0.1:8554/x", "listen+rtmp://127.0.0.1/a/b",
]  # fmt: skip
NOT_SURELY = [
    "clip.mp4", "http://host/a.m3u8", "https://host/b.m3u8?token=1", "http://host/a.mp4", "file:///a.m3u8", "a.m3u8",
    "synthetic:3", "C:\\clip.mp4", "", "tcp.mp4",
]  # fmt: skip


@pytest.mark.parametrize("address", LIVE)
def test_these_are_live(address):
    assert is_live(address)


@pytest.mark.parametrize("address", NOT_SURELY)
def test_these_are_not_or_only_their_server_knows(address):
    assert not is_live(address)


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://", "rtsp://user:pa@ss:word/x@host/1", "udp://127.0.0.1", "tcp://host/", "listen+udp://127.0.0.1:1",
        "listen+http://127.0.0.1/x.m3u8", "webcam:/etc/passwd", "webcam:/dev/../etc/shadow", "webcam:x", "screen:x",
        "rtsp://host:99999/x", "listen+screen:", "tcp://user:12#3@host:5000", "rtsp://[::1", "rtsp://h/a\nb",
    ],
)  # fmt: skip
def test_a_malformed_address_is_refused_at_once(address):
    with pytest.raises((SourceError, InputError)) as caught:
        open_live(address).close()
    assert "try: " in str(caught.value) or "one line" in str(caught.value)
    assert "pa@ss" not in str(caught.value) and "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://user:SECRET@cam/1", "rtsp://SECRET@cam/1", "http://h/a.m3u8?token=SECRET&b=SECRET",
        "rtsp://user:SE#SECRET@cam/1", "rtsp://user:1/SECRET@cam/1", "rtsp://user:1?SECRET@cam/1",
        "rtsp://user:SECRET%40@cam/1#SECRET", "rtsp://user:12#SECRET@cam:554/1",
    ],
)  # fmt: skip
def test_a_redacted_address_has_no_secret(address):
    assert "SECRET" not in redact(address)
    assert ":1" not in redact(address)


def test_places_and_settings_show_no_secret():
    place = locate_live("rtsp://user:SECRET@cam/1?key=SECRET")
    assert "SECRET" not in repr(place) and place.name == "rtsp://***@cam/1?key=***"
    assert "SECRET" not in repr(locate_live("listen+rtmp://127.0.0.1:1935/live/SECRET"))


def test_a_port_on_loopback_is_opened_on_loopback_only():
    assert locate_live("udp://127.0.0.1:5000").place.options["localaddr"] == "127.0.0.1"
    assert "localaddr" not in locate_live("udp://239.1.2.3:5000").place.options


@pytest.mark.parametrize("address", ["rtsp://cam/1", "rtmp://h/a/b", "udp://h:1", "tcp://h:1", "http://h/a.m3u8"])
def test_a_stream_cannot_lead_to_files(address):
    assert not {"file", "data", "concat", "subfile", "pipe"} & set(locate_live(address).place.protocols.split(","))


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": 0}, {"size": (0, 1)}, {"transport": "sctp"}, {"waiting": 0}, {"connect_s": 0}, {"retry_most_s": -1},
        {"stale_after_s": 5.0, "lost_after_s": 2.0}, {"retry_first_s": float("inf")}, {"connect_s": True},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError):
        LiveSettings(**settings)


def test_pauses_double_up_to_the_longest_and_are_shortened_by_chance():
    settings = LiveSettings(retry_first_s=0.5, retry_most_s=30.0)
    assert [pause_s(settings, n, 0.0) for n in (1, 2, 3, 7, 5000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert pause_s(settings, 3, 1.0) == 1.0
