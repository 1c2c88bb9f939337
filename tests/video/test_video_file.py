"""Files of every kind: the right pictures, at their true times, upright, in bounded memory."""

import functools
import gc
import http.server
import io
import os
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import COLS, ROWS, Clip, left_behind, num_threads, number_of, open_files, write

from onlooker.core.errors import InputError, SourceError
from onlooker.video import open_video

KINDS = {
    "clip.mp4": Clip(codec_options={"bf": "3", "g": "12"}),
    "clip.mkv": Clip(),
    "late.ts": Clip(container="mpegts", container_options={"mpegts_copyts": "1", "output_ts_offset": "500"}),
    "motion.avi": Clip(codec="mjpeg", pixels="yuvj420p"),
    "clip.mov": Clip(codec="mpeg4"),
    "clip.webm": Clip(codec="libvpx-vp9", num_frames=12, codec_options={"deadline": "realtime", "cpu-used": "8"}),
    "clip.flv": Clip(),
    "moving.gif": Clip(codec="gif", pixels="rgb8", fps=10),
    "bare.h264": Clip(container="h264"),
}


def times_and_numbers(source):
    return [(frame.time_s, number_of(frame.image)) for frame in source]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_at_its_true_time(tmp_path, name):
    clip = KINDS[name]
    with open_video(write(tmp_path / name, clip), fps=None) as source:
        seen = times_and_numbers(source)
    assert [number for _, number in seen] == list(range(clip.num_frames))
    assert [time_s for time_s, _ in seen] == pytest.approx([n / clip.fps for n in range(clip.num_frames)], abs=0.0006)
    report = source.report
    assert report.num_decoded == report.num_delivered == clip.num_frames
    assert not report.damage and not report.num_gaps and not report.num_repaired_times and not report.num_clock_jumps
    assert report.num_guessed_times == (clip.num_frames if name == "bare.h264" else 0)


def test_facts_known_at_the_start(tmp_path):
    path = write(tmp_path / "late.ts", KINDS["late.ts"])
    info = open_video(path).info
    assert info.name == str(path) and info.codec == "h264" and not info.live
    assert (info.fps, info.size, info.rotation) == (25.0, (ROWS, COLS), 0)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    assert info.start_time_s > 400


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4"])
def test_variable_rate_times_are_kept_and_sampled_by_time(tmp_path, name):
    stamps = [0, 10, 33, 500, 990, 1010, 1020, 4000, 4100, 4999, 5003, 9000]
    clip = Clip(num_frames=len(stamps), stamps=stamps, time_base=Fraction(1, 1000))
    path = write(tmp_path / name, clip)
    seen = times_and_numbers(open_video(path, fps=None))
    assert seen == [(pytest.approx(stamp / 1000), n) for n, stamp in enumerate(stamps)]
    source = open_video(path, fps=1.0)
    # 4.999 s counts as on time for 5 s: containers round to the millisecond.
    assert [time_s for time_s, _ in times_and_numbers(source)] == pytest.approx([0.0, 1.01, 4.0, 4.999, 9.0])
    assert (source.report.num_delivered, source.report.num_skipped) == (5, 7)


@pytest.mark.parametrize("fps,step", [(1.0, 25), (5.0, 5), (25.0, 1), (100.0, 1)])
def test_sampling(tmp_path, fps, step):
    path = write(tmp_path / "clip.mp4")
    assert times_and_numbers(open_video(path, fps)) == [(n / 25, n) for n in range(0, 50, step)]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "moving.gif"])
def test_a_start_inside_gives_the_same_frames_as_reading_all(tmp_path, name):
    path = write(tmp_path / name, KINDS[name])
    whole = times_and_numbers(open_video(path, fps=None))
    for start_s in (0.0, 0.04, 0.1, 0.37):
        part = times_and_numbers(open_video(path, fps=None, start_s=start_s))
        assert part == [seen for seen in whole if seen[0] >= start_s - 0.001], start_s
    if len(whole) == 50:
        part = times_and_numbers(open_video(path, fps=None, start_s=1.5, end_s=1.8))
        assert part == [seen for seen in whole if 1.499 <= seen[0] < 1.8]


def test_a_far_start_does_not_decode_what_lies_before(tmp_path):
    clip = Clip(num_frames=250, fps=10, codec_options={"g": "10", "preset": "ultrafast"})
    source = open_video(write(tmp_path / "long.mp4", clip), fps=None, start_s=24.0)
    assert times_and_numbers(source)[0] == (24.0, 240)
    assert source.report.num_decoded <= 20


def test_due_times_count_from_the_start_asked_for(tmp_path):
    path = write(tmp_path / "clip.mp4")
    assert [t for t, _ in times_and_numbers(open_video(path, 1.0, start_s=0.52))] == [0.52, 1.52]


def test_a_start_past_the_end_is_refused(tmp_path):
    with pytest.raises(InputError, match="past the end"):
        open_video(write(tmp_path / "clip.mp4"), start_s=99.0)


@pytest.mark.parametrize(
    "codec,pixels,name",
    [
        ("libx264", "yuv420p10le", "c.mkv"),
        ("libx264", "yuv444p", "c.mkv"),
        ("libx264", "yuv422p", "c.mkv"),
        ("libx264", "nv12", "c.mkv"),
        ("libx264", "gray", "c.mkv"),
        ("mjpeg", "yuvj444p", "c.mkv"),
        ("ffv1", "gray16le", "c.mkv"),
        ("ffv1", "yuva420p", "c.mkv"),
        ("png", "rgba", "c.mov"),
        ("png", "rgb48be", "c.mov"),
        ("png", "ya8", "c.mov"),
        ("png", "monob", "c.mov"),
        ("qtrle", "argb", "c.mov"),
        ("rawvideo", "yuyv422", "c.avi"),
        ("rawvideo", "bgr24", "c.avi"),
        ("rawvideo", "pal8", "c.nut"),
        ("ffv1", "bgra", "c.mkv"),
    ],
)
def test_pixel_formats(tmp_path, codec, pixels, name):
    if pixels == "pal8":
        pytest.importorskip("PIL")
        path = _palette_gif(tmp_path / "c.gif")
    else:
        path = write(tmp_path / name, Clip(codec=codec, pixels=pixels, num_frames=3, codec_options={}))
    frames = list(open_video(path, fps=None))
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2]
    assert all(frame.image.dtype == np.uint8 and frame.image.shape == (ROWS, COLS, 3) for frame in frames)
    if pixels not in ("gray", "gray16le", "ya8", "monob"):
        red, green, blue = frames[0].image[-2, COLS // 2].astype(int)
        assert red > 110 and green < 50 and blue < 50


def _palette_gif(path: Path) -> Path:
    from PIL import Image
    from video_clips import picture

    first, *rest = [Image.fromarray(picture(n)).convert("P", palette=Image.Palette.ADAPTIVE) for n in range(3)]
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


@pytest.mark.parametrize("rows,cols", [(47, 63), (33, 31), (50, 70), (2, 16), (481, 17)])
def test_odd_sizes(tmp_path, rows, cols):
    clip = Clip(codec="ffv1", pixels="yuv420p", rows=rows, cols=cols, num_frames=2, codec_options={})
    frames = list(open_video(write(tmp_path / "odd.mkv", clip), fps=None))
    assert [frame.image.shape for frame in frames] == [(rows, cols, 3)] * 2


@pytest.mark.parametrize("angle,clockwise", [(0, 0), (90, 270), (180, 180), (270, 90)])
def test_rotation_is_applied(tmp_path, angle, clockwise):
    # The encoder counts counterclockwise; the strip at the bottom tells where the picture went.
    path = write(tmp_path / "turned.mp4", Clip(num_frames=1, rotation=angle))
    source = open_video(path)
    assert source.info.rotation == clockwise
    assert source.info.size == ((COLS, ROWS) if angle in (90, 270) else (ROWS, COLS))
    image = next(source).image
    assert image.shape[:2] == source.info.size
    upright = np.rot90(image, k=clockwise // 90)
    assert number_of(upright) == 0
    assert upright[-2, COLS // 2, 0] > 100 > upright[2, COLS // 2, 0]
    assert next(iter(open_video(path, size=(40, 20)))).image.shape == (40, 20, 3)


def test_rotation_in_a_patched_track_header(tmp_path):
    path = write(tmp_path / "plain.mp4", Clip(num_frames=1))
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 40  # version, flags, times, track, duration, layer, group, volume
    quarter_turn = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter_turn)
    assert open_video(io.BytesIO(data)).info.rotation == 90


def test_pixels_are_made_square(tmp_path):
    path = write(tmp_path / "wide.mp4", Clip(num_frames=1, sample_aspect=Fraction(4, 3)))
    assert next(open_video(path)).image.shape == (48, 85, 3)
    assert next(open_video(path, size=(24, 24), aspect="fit")).image.shape == (14, 24, 3)
    tall = write(tmp_path / "tall.mp4", Clip(num_frames=1, sample_aspect=Fraction(1, 2)))
    assert next(open_video(tall)).image.shape == (96, 64, 3)


def test_size_and_aspect(tmp_path):
    path = write(tmp_path / "clip.mp4", Clip(num_frames=40))
    frame = list(open_video(path, fps=None, size=(96, 96)))[37]
    assert frame.image.shape == (96, 96, 3) and number_of(frame.image) == 37
    assert next(open_video(path, size=(96, 96), aspect="fit")).image.shape == (72, 96, 3)
    assert next(open_video(path, size=(1, 1))).image.shape == (1, 1, 3)
    assert open_video(path, size=(96, 96)).info.size == (ROWS, COLS)


def test_two_streams_laid_end_to_end_go_on_in_time(tmp_path):
    first = write(tmp_path / "a.ts", Clip(container="mpegts")).read_bytes()
    second = write(tmp_path / "b.ts", Clip(container="mpegts", first_number=100)).read_bytes()
    source = open_video(io.BytesIO(first + second), fps=None)
    seen = times_and_numbers(source)
    times = [time_s for time_s, _ in seen]
    assert [number for _, number in seen][:50] == list(range(50))
    assert seen[-1][1] == 149
    assert all(0 < b - a < 0.1 for a, b in pairwise(times))
    assert source.report.num_clock_jumps == 1


def test_a_change_of_size_on_the_way_is_delivered_and_counted(tmp_path):
    small = write(tmp_path / "a.h264", Clip(container="h264")).read_bytes()
    large = write(tmp_path / "b.h264", Clip(container="h264", rows=96, cols=128)).read_bytes()
    source = open_video(io.BytesIO(small + large), fps=None)
    shapes = [frame.image.shape[:2] for frame in source]
    assert set(shapes) == {(48, 64), (96, 128)} and source.report.num_size_changes == 1
    resized = open_video(io.BytesIO(small + large), fps=None, size=(20, 30))
    assert {frame.image.shape for frame in resized} == {(20, 30, 3)}


@pytest.mark.parametrize("codec,pixels,name", [("png", "rgba", "still.png"), ("mjpeg", "yuvj420p", "still.jpg")])
def test_a_still_image_is_a_video_of_one_frame(tmp_path, codec, pixels, name):
    clip = Clip(codec=codec, pixels=pixels, num_frames=1, first_number=77, container="image2", codec_options={})
    source = open_video(write(tmp_path / name, replace(clip, container_options={"update": "1"})))
    assert times_and_numbers(source) == [(0.0, 77)]
    assert source.info.fps is None and source.info.duration_s is None and not source.report.damage


def test_sound_beside_the_picture_is_ignored(tmp_path):
    path = write(tmp_path / "talk.mkv", Clip(with_sound=True))
    assert len(times_and_numbers(open_video(path, fps=None))) == 50


class Pipe(io.RawIOBase):
    """A readable thing that cannot go back."""

    def __init__(self, data):
        self._inner = io.BytesIO(data)

    def readable(self):
        return True

    def seekable(self):
        return False

    def read(self, size=-1):
        return self._inner.read(size)


def test_file_objects_are_read_from_their_start_and_left_open(tmp_path):
    path = write(tmp_path / "clip.mp4")
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        source = open_video(file, fps=None, start_s=1.0)
        assert source.info.name == str(path)
        assert times_and_numbers(source)[0] == (1.0, 25)
        assert not file.closed


def test_a_pipe_is_read_forward(tmp_path):
    data = write(tmp_path / "clip.ts", Clip(container="mpegts")).read_bytes()
    assert len(list(open_video(Pipe(data), fps=None))) == 50
    assert times_and_numbers(open_video(Pipe(data), fps=None, start_s=1.0))[0] == (pytest.approx(1.0), 25)


@pytest.mark.parametrize("name", ["concat:a|b.mp4", "100%d.mp4", "with space #1?.mp4", "Umlaut \u00e4\u2603.mp4"])
def test_names_are_only_names(tmp_path, name):
    path = write(tmp_path / "plain.mp4")
    assert len(list(open_video(path.rename(tmp_path / name), fps=5.0))) == 10
    assert len(list(open_video(str(tmp_path / name), fps=5.0))) == 10


def test_addresses(tmp_path):
    path = write(tmp_path / "clip.mp4", Clip(container_options={"movflags": "faststart"}))
    assert len(list(open_video(path.as_uri(), fps=5.0))) == 10

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        host = f"127.0.0.1:{server.server_port}"
        source = open_video(f"http://user:secret@{host}/clip.mp4?token=hush", fps=None)
        assert source.info.name == f"http://***@{host}/clip.mp4?token=***" and not source.info.live
        assert len(list(source)) == 50
        with pytest.raises(SourceError) as caught:
            open_video(f"http://user:secret@{host}/none.mp4?token=hush")
        assert "secret" not in str(caught.value) and "hush" not in str(caught.value)
        assert caught.value.__cause__ is None
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nothing_stays_open(tmp_path):
    path = str(write(tmp_path / "clip.mp4"))
    gc.collect()
    files, threads = open_files(), num_threads()
    gc.disable()  # closing must not wait for the garbage collector
    try:
        list(open_video(path, fps=None))
        with open_video(path, fps=None, start_s=0.5) as source:
            next(source)
            assert path in open_files()
        assert next(source, None) is None
        assert not left_behind(files)
        for _ in open_video(path, fps=None):
            break
        open_video(path)
        del source, _
        assert not left_behind(files, threads)
    finally:
        gc.enable()


def test_closing_twice_and_from_another_thread(tmp_path):
    source = open_video(write(tmp_path / "clip.mp4", Clip(num_frames=200)), fps=None, size=(400, 400))
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(frame.time_s for frame in source))
    reader.start()
    source.close()
    source.close()
    reader.join(200)
    assert not reader.is_alive() and len(seen) < 200


def test_a_loop_goes_on_where_the_last_one_stopped(tmp_path):
    source = open_video(write(tmp_path / "clip.mp4"), fps=None)
    for frame in source:
        if frame.time_s >= 1.0:
            break
    assert number_of(next(source).image) == 26
    assert len(list(source)) == 23
    assert list(source) == []


def test_memory_does_not_grow_with_length(tmp_path):
    clip = Clip(rows=240, cols=320, num_frames=1500, codec_options={"preset": "ultrafast", "g": "50"})
    path = tmp_path / "long.mp4"
    blank = av.VideoFrame(clip.cols, clip.rows, "yuv420p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(clip.codec, rate=25, options=clip.codec_options)
        stream.width, stream.height, stream.pix_fmt = clip.cols, clip.rows, clip.pixels
        for index in range(clip.num_frames):
            blank.pts = index
            container.mux(stream.encode(blank))
        container.mux(stream.encode())
    peaks = []
    for index, _ in enumerate(open_video(path, fps=None)):
        if index % 100 == 0:
            status = Path("/proc/self/status").read_text()
            peaks.append(int(status.split("VmRSS:")[1].split()[0]) // 1024)
    # 1,500 decoded pictures are 345 MB; the decoder itself holds a few.
    assert peaks[-1] - peaks[1] < 30, peaks


@pytest.mark.parametrize("codec", [False, True])
def test_decoded_pictures_are_freed_without_looking_for_garbage(tmp_path, codec):
    """`frame.side_data` and its frame hold each other: a server that rarely looks held gigabytes of them."""
    path = write(tmp_path / "clip.mp4")
    gc.collect()
    before = len(_pictures())
    gc.disable()
    try:
        frames = 0
        for _ in open_video(path, fps=None, codec=codec):
            frames += 1
            assert len(_pictures()) - before <= 16, frames  # what the decoder is ahead by
        assert frames == Clip().num_frames > 16
    finally:
        gc.enable()


def _pictures() -> list[object]:
    return [one for one in gc.get_objects() if type(one) is av.VideoFrame]


def test_importing_the_room_loads_no_decoder_and_no_torch():
    code = "import sys, onlooker.video; sys.exit(any(name in sys.modules for name in ('av', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": 0},
        {"fps": "1"},
        {"fps": float("nan")},
        {"size": (0, 10)},
        {"size": 384},
        {"size": (384,)},
        {"size": (384.0, 384.0)},
        {"size": (100_000, 10)},
        {"aspect": "stretch"},
        {"start_s": -1.0},
        {"start_s": None},
        {"start_s": float("inf")},
        {"end_s": 0.0},
        {"start_s": 2.0, "end_s": 1.0},
        {"on_damage": "ignore"},
        {"threads": -1},
        {"timeout_s": 0},
    ],
)
def test_bad_settings_are_refused_before_the_file_is_touched(settings):
    with pytest.raises(InputError):
        open_video("/nowhere.mp4", **settings)
