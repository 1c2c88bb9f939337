"""What the encoder says of motion, against clips whose motion is known."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import Clip, picture, write

from onlooker.core.codec import CodecRecord
from onlooker.video import open_video

ROWS, COLS = 144, 192
GROUND = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def pan(path: Path, per_frame=(2, 4), num=25, codec="libx264", fps=10, thing=None, **options) -> Path:
    """A window that moves over a textured ground: whatever it shows was `per_frame` pixels further in the frame before.

    `thing` (per frame) is a square that moves on its own over a standing ground.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "100", "refs": "1"} | options)
        stream.width, stream.height, stream.pix_fmt = COLS, ROWS, "yuv420p"
        for index in range(num):
            row, col = 40 + per_frame[0] * index, 40 + per_frame[1] * index
            image = GROUND[row : row + ROWS, col : col + COLS].copy()
            if thing:
                top, left = 48 + thing[0] * index, 48 + thing[1] * index
                image[top : top + 32, left : left + 32] = GROUND[300:332, 300:332]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def records(path: Path, fps: float | None, **options) -> list[CodecRecord]:
    with open_video(path, fps=fps, codec=True, **options) as source:
        found = [frame.codec for frame in source]
    assert all(found)
    return [one for one in found if one is not None]


def middle(record: CodecRecord) -> np.ndarray:
    """Motion (rows, cols) in stored pixels, away from the borders, where the ground comes into the picture."""
    assert record.motion is not None
    inner = record.motion[2:-2, 2:-2].reshape(-1, 2) * (ROWS, COLS)
    return np.median(inner, axis=0)


@pytest.mark.parametrize(("codec", "extra"), [("libx264", {"bf": "0"}), ("mpeg4", {"bf": "0"})])
@pytest.mark.parametrize(("fps", "step"), [(None, 1), (5.0, 2), (2.0, 5)])
def test_vectors_are_chained_from_one_taken_frame_to_the_next(codec, extra, fps, step, tmp_path):
    found = records(pan(tmp_path / "a.mp4", codec=codec, **extra), fps)
    assert found[0].motion is None and found[0].frame_type == "I"
    for record in found[1:]:
        assert middle(record) == pytest.approx((2 * step, 4 * step), abs=0.5)
        assert record.frame_type == "P" and record.num_pictures == step and record.num_intra == 0
        assert record.known is not None and np.median(record.known) == 1.0


def test_what_was_said_of_a_dropped_frame_is_said_with_the_next(tmp_path):
    """As the source would have told it, had it not taken the frame; of what nothing is known, nothing."""
    path = pan(tmp_path / "a.mp4", bf="0")
    found, wanted = records(path, None), records(path, 5.0)
    for before, after, both in zip(found[1::2], found[2::2], wanted[1:], strict=False):
        told = after.after(before)
        assert middle(told) == pytest.approx((4, 8), abs=0.5) == middle(both)
        assert told.known is not None and np.median(told.known) == 1.0
        assert (told.num_pictures, told.num_intra, told.num_bytes) == (2, 0, both.num_bytes)
    assert found[1].after(found[0]).motion is None and found[1].after(found[0]).num_intra == 1


@pytest.mark.parametrize("step", [1, 3, 4])
def test_pictures_predicted_from_both_sides_are_followed(step, tmp_path):
    path = pan(tmp_path / "a.mp4", bf="2", **{"b-pyramid": "none", "b-adapt": "0"})
    found = records(path, 10 / step)
    assert {"B", "P"} & {record.frame_type for record in found}
    for record in found[1:]:
        assert middle(record) == pytest.approx((2 * step, 4 * step), abs=1.0)


def test_a_thing_that_moves_over_a_standing_ground(tmp_path):
    (record,) = records(pan(tmp_path / "a.mp4", per_frame=(0, 0), thing=(0, -4), num=6, bf="0"), 2.0)[1:]
    assert record.motion is not None
    grid = record.on_grid(9, 12)
    assert grid is not None
    mean, spread, known = grid
    # After five frames the square is 20 pixels further left; its inside was 20 pixels to the right.
    assert mean[3, 2] * (ROWS, COLS) == pytest.approx((0, 20), abs=1.0)
    assert np.abs(mean[6:]).max() * COLS < 0.5 and spread[6:].max() * COLS < 0.5
    assert known[6:].min() == 1.0


def test_an_intra_picture_on_the_way_cuts_the_chain_and_is_counted(tmp_path):
    found = records(pan(tmp_path / "a.mp4", bf="0", g="5", sc_threshold="0"), 2.0)
    assert [record.num_intra for record in found[1:]] == [1, 1, 1, 1]
    assert all(record.known is not None and record.known.max() == 0.0 for record in found[1:])


def test_bytes_are_those_of_all_packets_on_the_way(tmp_path):
    path = pan(tmp_path / "a.mp4", bf="0")
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    found = records(path, 5.0)
    assert [record.num_bytes for record in found] == [sizes[0], *(sum(sizes[n : n + 2]) for n in range(1, 25, 2))]


def test_motion_is_turned_with_the_picture(tmp_path):
    """A picture stored lying, to be turned by 90 degrees: what moved along the columns is shown along the rows."""
    plain = pan(tmp_path / "plain.mp4", bf="0", per_frame=(0, 4))
    turned = tmp_path / "turned.mp4"
    with av.open(str(plain)) as given, av.open(str(turned), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        stream.set_display_rotation(90)
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    with open_video(turned, fps=5.0, codec=True) as source:
        first, second = next(source), next(source)
    assert first.image.shape == (COLS, ROWS, 3) and second.codec is not None and second.codec.motion is not None
    rows, cols = np.median(second.codec.motion[2:-2, 2:-2].reshape(-1, 2), axis=0) * (COLS, ROWS)
    # The same shift must be found in the pictures themselves.
    shift = round(float(rows))
    assert abs(abs(rows) - 8) < 1 and abs(cols) < 1
    here, there = second.image[40:-40].astype(int), first.image[40 + shift : COLS - 40 + shift].astype(int)
    assert np.abs(here - there).mean() < np.abs(here - first.image[40:-40]).mean() / 2


def test_it_is_off_unless_asked_for_and_changes_no_picture(tmp_path):
    path = pan(tmp_path / "a.mp4")
    plain, told = list(open_video(path, fps=5.0)), list(open_video(path, fps=5.0, codec=True))
    assert all(frame.codec is None for frame in plain)
    assert [frame.time_s for frame in plain] == [frame.time_s for frame in told]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(plain, told, strict=True))


def test_a_seek_begins_anew(tmp_path):
    found = records(pan(tmp_path / "a.mp4", bf="0", g="10", sc_threshold="0"), 10.0, start_s=1.2)
    assert found[0].motion is None
    assert middle(found[1]) == pytest.approx((2, 4), abs=0.5)


@pytest.mark.parametrize(("codec", "name"), [("libx265", "hevc"), ("mjpeg", "mjpeg")])
def test_where_there_are_no_vectors_it_is_counted_by_name(codec, name, tmp_path):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    clip = Clip(codec=codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p", num_frames=10, codec_options=options)
    source = open_video(write(tmp_path / "a.mkv", clip), fps=None, codec=True)
    found = [frame.codec for frame in source]
    assert all(one is not None and one.motion is None and one.num_bytes > 0 for one in found)
    assert source.report.num_without_motion == 9
    assert source.report.notes == [f"the decoder of {name} exports no motion vectors"]


def test_pictures_that_are_files_have_no_encoder(tmp_path):
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    source = open_video(tmp_path, fps=None, codec=True)
    assert [frame.codec for frame in source] == [None] * 3
    assert source.report.num_without_motion == 3 and "no encoder says how these pictures moved" in source.report.notes


def test_the_mean_over_patches_of_any_grid_is_that_of_the_field():
    field = np.random.default_rng(1).normal(size=(9, 12, 2)).astype(np.float32)
    record = CodecRecord("P", 1, 0, 10, field, np.ones((9, 12), np.float32))
    for rows, cols in ((3, 4), (9, 12), (14, 14), (5, 7)):
        grid = record.on_grid(rows, cols)
        assert grid is not None
        mean, spread, known = grid
        assert mean.shape == (rows, cols, 2) and np.allclose(mean.mean((0, 1)), field.mean((0, 1)), atol=1e-5)
        assert np.allclose(known, 1.0, atol=1e-5) and spread.min() >= 0
    exact = record.on_grid(9, 12)
    assert exact is not None and np.allclose(exact[0], field, atol=1e-6) and np.allclose(exact[1], 0, atol=1e-3)
    assert CodecRecord("I", 1, 1, 10, None, None).on_grid(3, 4) is None
