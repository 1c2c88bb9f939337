"""Which stream of a file is read, at which rate where none is stamped, and that nothing promised is lost in silence."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from test_video_damage import song_with_cover
from video_clips import Clip, number_of, picture, write

from onlooker.core.errors import DamagedSource, InputError, SourceError
from onlooker.video import open_video

NOISY = Clip(is_noisy=True, rows=96, cols=128, codec_options={"g": "10"})


def encode(container, stream, numbers):
    for number in numbers:
        frame = av.VideoFrame.from_ndarray(picture(number, stream.height, stream.width), format="rgb24")
        container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
    container.mux(stream.encode())


def thumbnail_first(path: Path) -> Path:
    """A track of one picture that is not marked as a cover, then the film."""
    with av.open(str(path), "w") as container:
        thumbnail = container.add_stream("libx264", rate=1)
        thumbnail.width, thumbnail.height, thumbnail.pix_fmt = 32, 24, "yuv420p"
        film = container.add_stream("libx264", rate=10, options={"g": "5"})
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        encode(container, thumbnail, [255])
        encode(container, film, range(20))
    return path


def two_films(path: Path, marked: int) -> Path:
    with av.open(str(path), "w") as container:
        streams = []
        for index, cols in enumerate((64, 128)):
            stream = container.add_stream("libx264", rate=10, options={"g": "5"})
            stream.width, stream.height, stream.pix_fmt = cols, 48, "yuv420p"
            stream.disposition = av.stream.Disposition.default if index == marked else av.stream.Disposition(0)
            streams.append(stream)
        for index, stream in enumerate(streams):
            encode(container, stream, range(100 * index, 100 * index + 10))
    return path


def test_the_film_is_read_and_not_the_thumbnail_before_it(tmp_path):
    with open_video(thumbnail_first(tmp_path / "a.mkv"), fps=None) as source:
        assert source.info.size == (48, 64) and source.info.codec == "h264"
        assert [number_of(frame.image) for frame in source] == list(range(20))
    assert source.report.notes == ["of its video streams number 1 is read: 0 (h264 24 x 32), 1 (h264 48 x 64)"]


def test_the_stream_marked_as_default_is_read(tmp_path):
    for marked in (0, 1):
        with open_video(two_films(tmp_path / f"{marked}.mkv", marked), fps=None) as source:
            assert number_of(next(source).image) == 100 * marked
        assert f"number {marked} is read" in source.report.notes[0]


def test_a_stream_may_be_named(tmp_path):
    path = two_films(tmp_path / "a.mkv", marked=1)
    with open_video(path, fps=None, stream=0) as source:
        assert [number_of(frame.image) for frame in source] == list(range(10))
    with pytest.raises(InputError, match=r"it has 2.*0 \(h264 48 x 64\), 1 \(h264 48 x 128\)"):
        open_video(path, stream=2)
    with pytest.raises(InputError, match="from 0"):
        open_video(path, stream=-1)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.h264"), ("libx265", "a.hevc")])
def test_bare_pictures_have_the_rate_of_their_headers_and_it_is_said(codec, name, tmp_path):
    quiet = {"g": "12"} | ({"x265-params": "log-level=none"} if codec == "libx265" else {})
    path = write(tmp_path / name, Clip(codec=codec, fps=10, num_frames=20, codec_options=quiet))
    with open_video(path, fps=None) as source:
        assert [frame.time_s for frame in source] == [number / 10 for number in range(20)]
        assert source.info.fps == 10
    assert source.report.notes == ["its pictures carry no times: 10 a second assumed, the rate in its headers"]
    with open_video(path, fps=None, rate=4.0) as source:
        assert [frame.time_s for frame in source] == [number / 4 for number in range(20)]
    assert not source.report.notes


def test_pictures_that_no_header_times_are_taken_at_the_usual_rate_and_it_is_said(tmp_path):
    clip = Clip(codec="mjpeg", pixels="yuvj420p", container="mjpeg", fps=5, num_frames=10, codec_options={})
    with open_video(write(tmp_path / "a.mjpeg", clip), fps=None) as source:
        assert [frame.time_s for frame in source] == [number / 25 for number in range(10)]
    assert source.report.notes == ["its pictures carry no times, and nothing says their rate: 25 a second assumed"]
    with open_video(tmp_path / "a.mjpeg", fps=None, rate=5.0) as source:
        assert [number_of(frame.image) for frame in source] == list(range(10))
    assert source.report.num_guessed_times == 10


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), True, "5"])
def test_a_rate_that_makes_no_sense_is_refused(rate, tmp_path):
    with pytest.raises(InputError, match="pictures a second"):
        open_video(tmp_path / "a.mjpeg", rate=rate)


def test_a_photograph_is_one_picture_without_a_rate(tmp_path):
    clip = Clip(codec="mjpeg", pixels="yuvj420p", container="mjpeg", num_frames=1, codec_options={})
    with open_video(write(tmp_path / "a.jpg", clip), fps=None) as source:
        assert [frame.time_s for frame in source] == [0.0]
        assert source.info.fps is None and not source.report.notes


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_pause_within_the_declared_length_is_kept_however_long(name, tmp_path):
    stamps = [number if number < 10 else number + 73_000 for number in range(20)]
    clip = Clip(fps=10, num_frames=20, stamps=stamps, time_base=Fraction(1, 10))
    with open_video(write(tmp_path / name, clip), fps=None) as source:
        times = [frame.time_s for frame in source]
    assert times == pytest.approx([stamp / 10 for stamp in stamps])
    assert source.report.num_clock_jumps == 0 and source.report.num_gaps == 1


def test_pictures_that_the_index_promised_and_that_did_not_come_are_damage(tmp_path):
    data = write(tmp_path / "a.mp4", NOISY).read_bytes()
    whole = open_video(io.BytesIO(data), fps=None)
    assert len(list(whole)) == 50 and not whole.report.damage
    # The sample sizes of five pictures in the middle say nothing: their bytes are gone, the stamps around them are not.
    start = data.index(b"stsz") + 16
    holes = data[: start + 80] + bytes(20) + data[start + 100 :]
    source = open_video(io.BytesIO(holes), fps=None)
    frames = list(source)
    assert len(frames) < 50
    assert any("pictures did not come" in line for line in source.report.damage)
    with pytest.raises(DamagedSource, match="did not come"):
        list(open_video(io.BytesIO(holes), fps=None, on_damage="raise"))


def test_a_part_of_a_sound_file_is_no_damage(tmp_path):
    path = write(tmp_path / "a.mp4", NOISY)
    for span in ({"start_s": 0.9}, {"end_s": 1.0}, {"start_s": 0.5, "end_s": 1.5}):
        source = open_video(path, fps=None, on_damage="raise", **span)
        assert len(list(source)) > 20 and not source.report.damage


@pytest.mark.parametrize("name", ["a.flv", "a.mkv", "a.mp4"])
def test_a_film_with_sound_that_ends_too_soon_is_damage(name, tmp_path):
    clip = replace(NOISY, with_sound=True, container_options={"movflags": "faststart"} if name == "a.mp4" else {})
    data = write(tmp_path / name, clip).read_bytes()
    whole = open_video(io.BytesIO(data), fps=None)
    assert len(list(whole)) == 50 and not whole.report.damage
    source = open_video(io.BytesIO(data[: len(data) // 2]), fps=None)
    assert 10 < len(list(source)) < 50
    assert any("of a declared" in line for line in source.report.damage), source.report.damage


def test_a_song_is_said_to_have_a_cover_and_no_video(tmp_path):
    with pytest.raises(SourceError, match=r"holds no video, only a cover, audio"):
        open_video(song_with_cover(tmp_path))
