"""Damaged and hostile input: what decodes is delivered, the rest is one clear error or one clear report."""

import gc
import io
import os
import random
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from ports import free_port
from video_clips import Clip, flipped, left_behind, num_threads, number_of, open_files, write, write_sound

from onlooker.core.errors import DamagedSource, InputError, OnlookerError, SourceError
from onlooker.video import open_video

NOISY = Clip(is_noisy=True, rows=96, cols=128, codec_options={"g": "10"})
INDEX_FIRST = replace(NOISY, container_options={"movflags": "faststart"})


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "clip.mp4", INDEX_FIRST).read_bytes()


@pytest.fixture(scope="module")
def mkv(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "clip.mkv", NOISY).read_bytes()


@pytest.fixture(scope="module")
def ts(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "clip.ts", replace(NOISY, container="mpegts")).read_bytes()


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_truncated_tail_delivers_the_rest_and_says_so(kind, request, caplog):
    data = request.getfixturevalue(kind)
    source = open_video(io.BytesIO(data[: len(data) * 6 // 10]), fps=None)
    frames = list(source)
    assert 10 < len(frames) < 50
    assert [number_of(frame.image) for frame in frames[:10]] == list(range(10))
    assert any("of a declared 2.00 s" in line for line in source.report.damage)
    told = [record.message for record in caplog.records if record.name.startswith("onlooker.video")]
    assert len(told) == 1 and "is damaged" in told[0]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_flipped_bytes_deliver_the_rest_and_no_loss_is_silent(kind, request):
    data = request.getfixturevalue(kind)
    num_reported = 0
    for percent in range(30, 96, 6):
        source = open_video(io.BytesIO(flipped(data, percent / 100)), fps=None)
        frames = list(source)
        times = [frame.time_s for frame in frames]
        assert times == sorted(set(times))
        assert [number_of(frame.image) for frame in frames[:10]] == list(range(10))
        is_reported = bool(source.report.damage or source.report.num_gaps)
        assert is_reported or len(frames) >= 48, percent
        num_reported += is_reported
    assert num_reported >= 8


def test_damage_may_be_raised_after_the_last_frame(mp4):
    source = open_video(io.BytesIO(flipped(mp4, 0.6)), fps=None, on_damage="raise")
    frames = []
    with pytest.raises(DamagedSource, match="the video is damaged: "):
        for frame in source:
            frames.append(frame)
    assert len(frames) > 10
    assert list(source) == []


def test_a_sound_file_raises_nothing_and_warns_nothing(mp4, caplog):
    assert len(list(open_video(io.BytesIO(mp4), fps=None, on_damage="raise"))) == 50
    assert not [record for record in caplog.records if record.name.startswith("onlooker.video")]


def test_a_still_last_picture_is_not_an_early_end(tmp_path):
    clip = Clip(num_frames=3, stamps=[0, 1, 250])
    source = open_video(write(tmp_path / "slides.mkv", clip), fps=None)
    assert [frame.time_s for frame in source] == [0.0, 0.04, 10.0]
    assert not source.report.damage


def test_sound_longer_than_the_picture_is_not_an_early_end(tmp_path):
    for name in ("talk.mp4", "talk.ts", "talk.mkv"):
        source = open_video(write(tmp_path / name, Clip(with_sound=True)), fps=None)
        assert len(list(source)) == 50 and not source.report.damage, name


class Disk(io.BytesIO):
    """A file on a disk that fails when told to."""

    is_broken = False

    def read(self, size=-1):
        if self.is_broken:
            raise KeyError("the disk is gone")
        return super().read(min(size, 4096) if size > 0 else size)


def test_a_file_object_failing_on_the_way_is_damage(tmp_path):
    clip = replace(NOISY, container="mpegts", num_frames=200)
    disk = Disk(write(tmp_path / "long.ts", clip).read_bytes())
    source = open_video(disk, fps=None, threads=1)
    frames = [next(source)]
    disk.is_broken = True
    frames += source
    assert 1 <= len(frames) < 200
    assert source.report.damage[0] == "reading failed: KeyError"


def png(cols: int, rows: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def song_with_cover(folder: Path) -> Path:
    import av

    path = folder / "song.m4a"
    sound = write_sound(folder / "plain.m4a")
    with av.open(str(sound)) as given, av.open(str(path), "w", format="mp4") as made:
        audio = made.add_stream_from_template(given.streams.audio[0])
        cover = made.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame(16, 16, "rgb24")
        frame.pts = 0
        made.mux([*cover.encode(frame), *cover.encode()])
        for packet in given.demux(given.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = audio
                made.mux(packet)
    return path


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "clip.zip", "w") as archive:
        archive.writestr("clip.mp4", bytes(5000))
    return folder / "clip.zip"


def unreadable(folder: Path) -> Path:
    path = written(folder, "secret.mp4", bytes(100))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    return path


def looped(folder: Path) -> Path:
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return folder / "loop.mp4"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def closed_port(_: Path) -> str:
    return f"http://name:secret@127.0.0.1:{free_port()}/clip.mp4?key=secret"


class Raising(io.BytesIO):
    def read(self, size=-1):
        raise RuntimeError("no")


class Returning:
    def __init__(self, value):
        self.value = value

    def read(self, size=-1):
        return self.value


def closed_object(_: Path):
    file = io.BytesIO(b"x")
    file.close()
    return file


def frameless(folder: Path) -> bytes:
    """An index that promises pictures, and not one of them."""
    data = write(folder / "clip.mp4", INDEX_FIRST).read_bytes()
    return data[: data.find(b"mdat") + 4]


def garbled(folder: Path) -> bytes:
    data = write(folder / "clip.mp4", INDEX_FIRST).read_bytes()
    start = data.find(b"mdat") + 4
    return data[:start] + random.Random(5).randbytes(len(data) - start)


HOSTILE = {
    "missing": lambda f: f / "none.mp4",
    "missing_folder": lambda f: f / "none" / "clip.mp4",
    "a_file_as_folder": lambda f: written(f, "a", b"x") / "clip.mp4",
    "folder": lambda f: f,
    "unreadable": unreadable,
    "link_to_itself": looped,
    "link_to_nothing": lambda f: (f / "gone.mp4").symlink_to(f / "none") or f / "gone.mp4",
    "named_pipe": fifo,
    "device": lambda f: "/dev/zero",
    "empty_name": lambda f: "",
    "zero_byte_in_name": lambda f: "clip\0.mp4",
    "name_too_long": lambda f: "x" * 5000,
    "empty_file": lambda f: written(f, "empty.mp4", b""),
    "one_byte": lambda f: written(f, "one.mp4", b"\0"),
    "text": lambda f: written(f, "notes.txt", b"hello world\n" * 200),
    "text_named_mp4": lambda f: written(f, "notes.mp4", b"hello world\n" * 200),
    "json": lambda f: written(f, "a.json", b'{"frames": [1, 2, 3]}'),
    "html": lambda f: written(f, "a.mp4", b"<!doctype html><title>404</title>"),
    "subtitles": lambda f: written(f, "a.srt", b"1\n00:00:00,000 --> 00:00:02,000\nhello\n\n"),
    "zip": zipped,
    "pdf": lambda f: written(f, "a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(500)),
    "program": lambda f: written(f, "a.out", b"\x7fELF" + bytes(2000)),
    "noise": lambda f: written(f, "noise.mp4", random.Random(1).randbytes(20000)),
    "noise_named_avi": lambda f: written(f, "noise.avi", random.Random(2).randbytes(20000)),
    "zeros": lambda f: written(f, "zeros.mkv", bytes(20000)),
    "sound_wav": lambda f: write_sound(f / "a.wav", "pcm_s16le"),
    "sound_m4a": lambda f: write_sound(f / "a.m4a"),
    "sound_mp3_in_mkv": lambda f: write_sound(f / "a.mka"),
    "song_with_cover": song_with_cover,
    "index_lost": lambda f: written(f, "a.mp4", write(f / "b.mp4").read_bytes()[:-900]),
    "header_only": lambda f: written(f, "a.mp4", write(f / "b.mp4").read_bytes()[:40]),
    "no_frames": lambda f: io.BytesIO(frameless(f)),
    "all_frames_garbled": lambda f: io.BytesIO(garbled(f)),
    "png_cut": lambda f: written(f, "a.png", png(64, 64)[:30]),
    "png_bomb": lambda f: written(f, "a.png", png(60000, 60000)),
    "playlist_of_others": lambda f: written(f, "a.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
    "concat_script": lambda f: written(f, "a.ffconcat", b"ffconcat version 1.0\nfile /etc/hostname\n"),
    "session_description": lambda f: written(f, "a.sdp", b"v=0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    "live_address": lambda f: "rtsp://name:secret@127.0.0.1/cam",
    "unknown_scheme": lambda f: "foo://bar",
    "nobody_listens": closed_port,
    "broken_address": lambda f: "http://[::1/clip.mp4",
    "object_raising": lambda f: Raising(b"x"),
    "object_empty": lambda f: io.BytesIO(b""),
    "object_text": lambda f: io.StringIO("hello"),
    "object_returning_none": lambda f: Returning(None),
    "object_returning_numbers": lambda f: Returning(5),
    "object_closed": closed_object,
    "bytes": lambda f: b"not a path",
    "none": lambda f: None,
    "number": lambda f: 0,
    "list": lambda f: ["a.mp4"],
}
WRONG_KIND = {"bytes", "none", "number", "list"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_one_clear_error(name, tmp_path):
    source = HOSTILE[name](tmp_path)
    gc.collect()
    files, threads = open_files(), num_threads()
    with pytest.raises(OnlookerError) as caught:
        list(open_video(source, fps=None, timeout_s=5.0))
    assert type(caught.value) is (InputError if name in WRONG_KIND else SourceError)
    text = str(caught.value)
    assert "\n" not in text and "given: " in text and "try: " in text and "secret:" not in text
    if name in ("live_address", "nobody_listens"):
        assert "secret" not in text
    assert not left_behind(files)
    del caught
    gc.collect()
    assert not left_behind(files, threads)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, "secret.mp4", b"x")
    monkeypatch.setattr(Path, "open", refuse)  # a superuser may read everything, and tests often run as one
    with pytest.raises(SourceError, match="may not be read"):
        open_video(path)


def test_random_damage_never_escapes_our_errors(mp4, mkv, ts):
    chance = random.Random(7)
    for round_number in range(60):
        data = bytearray((mp4, mkv, ts)[round_number % 3])
        for _ in range(chance.choice([1, 5, 50])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        try:
            source = open_video(io.BytesIO(data), fps=None, start_s=chance.choice([0.0, 0.0, 0.3]))
            times = [frame.time_s for frame in source]
        except OnlookerError:
            continue
        assert times == sorted(set(times))
        report = source.report
        assert report.num_decoded == report.num_delivered + report.num_skipped
