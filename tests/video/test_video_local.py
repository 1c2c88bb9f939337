"""Pipes, the standard input, folders and patterns of pictures, animated WebP, pictures of many bits, photographs."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps
from test_video_choice import NOISY
from video_clips import Clip, left_behind, number_of, open_files, picture, write

from onlooker.core.errors import SourceError
from onlooker.video import open_video

READ = """
import sys
from onlooker.video import open_video
with open_video(sys.argv[1], fps=None, on_damage="raise") as source:
    print(source.info.name, len(list(source)))
"""


def album(folder: Path, numbers, name: str = "img_{:03d}.png") -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(picture(number)).save(folder / name.format(number))
    return folder


@pytest.mark.parametrize("address", ["-", "/dev/stdin"])
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_the_standard_input_is_a_film(address, name, tmp_path):
    data = write(tmp_path / name, NOISY).read_bytes()
    done = subprocess.run([sys.executable, "-c", READ, address], input=data, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split()[-1] == "50"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_named_pipe_is_a_film(name, tmp_path):
    data, before = write(tmp_path / name, NOISY).read_bytes(), open_files()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    with open_video(pipe, fps=None, on_damage="raise") as source:
        assert [number_of(frame.image) for frame in source] == list(range(50))
    writer.join()
    assert not left_behind(before)


def test_a_pipe_that_nobody_writes_into_is_given_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"nobody wrote into this pipe for 0\.1 s"):
        open_video(tmp_path / "pipe", timeout_s=0.1)


def test_a_terminal_is_no_video():
    master, slave = os.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", READ, "-"], stdin=slave, capture_output=True, timeout=200)
    finally:
        os.close(master)
        os.close(slave)
    assert b"the standard input is a terminal" in done.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0", "webcam:0 for a camera"),
        ("/dev/video0", "webcam:0"),
        ("/dev/video7", "webcam:7"),
        ("srt://127.0.0.1:9000", "without SRT.*ffmpeg -i srt"),
        ("/dev/null", "a device"),
    ],
)
def test_what_is_meant_is_suggested(address, words):
    with pytest.raises(SourceError, match=words):
        open_video(address)


@pytest.mark.parametrize("pattern", ["", "img_%03d.png", "img_*.png", "*"])
def test_pictures_that_are_files_are_a_film(pattern, tmp_path):
    folder = album(tmp_path / "seq", range(1, 13))
    (folder / "notes.txt").write_text("no picture") if pattern == "" else None
    with open_video(folder / pattern if pattern else folder, fps=None, on_damage="raise") as source:
        frames = list(source)
        assert source.info.duration_s == 12.0
    assert [number_of(frame.image) for frame in frames] == list(range(1, 13))
    assert [frame.time_s for frame in frames] == list(range(12))
    assert source.report.notes == ["its pictures carry no times: 1 a second assumed"]
    with open_video(folder, fps=None, rate=4.0, start_s=1.5, end_s=2.5) as source:
        assert [(frame.time_s, number_of(frame.image)) for frame in source] == [
            (1.5, 7), (1.75, 8), (2.0, 9), (2.25, 10)
        ]  # fmt: skip
    assert not source.report.notes


def test_pictures_are_in_the_order_of_their_numbers_and_a_missing_one_is_told(tmp_path):
    folder = album(tmp_path / "seq", [8, 9, 10, 11, 20], name="{}.png")
    with open_video(folder, fps=None) as source:
        assert [number_of(frame.image) for frame in source] == [8, 9, 10, 11, 20]
    with open_video(folder / "%d.png", fps=None) as source:
        assert [frame.time_s for frame in source] == [0.0, 1.0, 2.0, 3.0, 12.0]
    assert "of its numbered pictures 8 are missing" in source.report.notes


def test_a_broken_picture_among_others_is_damage(tmp_path):
    folder = album(tmp_path / "seq", range(5))
    (folder / "img_002.png").write_bytes(b"no picture")
    source = open_video(folder, fps=None)
    assert [(frame.time_s, number_of(frame.image)) for frame in source] == [(0, 0), (1, 1), (3, 3), (4, 4)]
    assert "img_002.png shows no picture" in source.report.damage[-1]


def test_a_folder_without_pictures_and_a_pattern_without_files_are_refused(tmp_path):
    write(tmp_path / "a.mp4", Clip(num_frames=3))
    with pytest.raises(SourceError, match=r"holds no pictures.*one file in it"):
        open_video(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        open_video(tmp_path / "img_%03d.png")


@pytest.mark.parametrize("as_object", [False, True])
def test_an_animated_webp_is_a_film(as_object, tmp_path):
    first, *others = [Image.fromarray(picture(number)) for number in range(6)]
    path = tmp_path / "a.webp"
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 100, 100, 300, 100], lossless=True)
    with open_video(io.BytesIO(path.read_bytes()) if as_object else path, fps=None) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(6))
    assert [frame.time_s for frame in frames] == [0.0, 0.1, 0.3, 0.4, 0.5, 0.8]
    assert not source.report.damage
    with pytest.raises(SourceError, match="animated WebP cannot be read"):
        open_video(io.BytesIO(path.read_bytes()[:100]))


def test_a_still_webp_is_one_picture(tmp_path):
    Image.fromarray(picture(9)).save(tmp_path / "a.webp", lossless=True)
    assert [number_of(frame.image) for frame in open_video(tmp_path / "a.webp", fps=None)] == [9]


@pytest.mark.parametrize(("codec", "pixels"), [("png", "gray16be"), ("png", "rgb48be"), ("tiff", "rgb48le")])
def test_pictures_of_16_bits_are_scaled_and_not_clipped(codec, pixels, tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 48, axis=0)
    frame = av.VideoFrame.from_ndarray(np.stack([ramp] * 3, axis=2), format="rgb48le").reformat(format=pixels)
    path = tmp_path / f"a.{codec}"
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        container.mux([*stream.encode(frame), *stream.encode()])
    image = next(open_video(path)).image
    assert np.abs(image[0, :, 0].astype(int) - (ramp[0] >> 8)).max() <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_is_turned_as_its_exif_says(orientation, tmp_path):
    upright = Image.fromarray(picture(5)[:, :, ::-1].copy())
    exif = upright.getexif()
    exif[0x112] = orientation
    upright.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))).astype(int)
    image = next(open_video(tmp_path / "a.jpg")).image
    assert image.shape == shown.shape and np.abs(image - shown).mean() < 3


def test_hdr_is_told(tmp_path):
    clip = Clip(codec="libx265", pixels="yuv420p10le", num_frames=3, codec_options={
        "x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    })  # fmt: skip
    source = open_video(write(tmp_path / "a.mp4", clip), fps=None)
    assert len(list(source)) == 3
    assert any("HDR (PQ)" in line for line in source.report.notes)
