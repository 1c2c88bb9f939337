"""A file decoded in pieces side by side gives the frames of one reading, to the bit, and leaves nothing behind."""

import itertools
import threading

import numpy as np
import pytest
from video_clips import Clip, flipped, left_behind, open_files, write

from onlooker.core.errors import DamagedSource, InputError, SourceError
from onlooker.video import open_video
from onlooker.video.file import FileSource
from onlooker.video.parallel import PiecesSource

CLIP = Clip(fps=10, num_frames=600, is_noisy=True, codec_options={"g": "25", "bf": "3", "preset": "ultrafast"})


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A minute of H.264 with B-pictures."""
    return write(tmp_path_factory.mktemp("films") / "film.mp4", CLIP)


def same(path, workers, **settings):
    """Read twice, in pieces and from beginning to end; how many frames there were."""
    with open_video(path, **settings) as one, open_video(path, workers=workers, **settings) as other:
        assert isinstance(one, FileSource) and isinstance(other, PiecesSource)
        assert one.info == other.info
        count = 0
        for a, b in itertools.zip_longest(one, other):
            assert a is not None and b is not None, f"frame {count} is in one of them only"
            assert a.time_s == b.time_s
            assert a.image.shape == b.image.shape and np.array_equal(a.image, b.image)
            count += 1
        assert other.report.num_delivered == one.report.num_delivered == count
        report = other.report
        assert report.num_decoded == report.num_delivered + report.num_skipped >= one.report.num_decoded
        assert (report.damage, report.num_clock_jumps) == (one.report.damage, 0)
        assert report.num_gaps >= one.report.num_gaps  # one at which a piece begins is seen twice
    return count


@pytest.mark.proves("quickvideo", 1)
@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("fps", [1.0, 3.0, 0.7, 10.0])
def test_frames_are_those_of_one_reading(film, fps, workers):
    assert same(film, workers, fps=fps) >= 60 * fps - 1


@pytest.mark.parametrize(
    "settings",
    [
        {"start_s": 7.25},
        {"start_s": 3.0, "end_s": 41.0},
        {"end_s": 30.0, "size": (20, 30)},
        {"fps": 2.0, "start_s": 0.33, "size": (32, 32), "aspect": "fit"},
    ],
)
def test_spans_and_sizes(film, settings):
    same(film, 3, **settings)


def test_pauses_longer_than_a_piece(tmp_path):
    """Stamps with holes of many seconds: what is first for several due times is taken once."""
    holes = [n + 170 * (n // 100) for n in range(400)]
    path = write(tmp_path / "holes.mp4", Clip(fps=10, num_frames=400, stamps=holes, codec_options={"g": "15"}))
    same(path, 3)
    same(path, 2, fps=3.0)


@pytest.mark.parametrize("codec", ["libx265", "mpeg4"])
def test_other_codecs(tmp_path, codec):
    """HEVC in its default form has open groups: pictures that need a keyframe after them."""
    options = {"g": "20", "x265-params": "log-level=none:keyint=20:open-gop=1"} if codec == "libx265" else {"g": "20"}
    clip = Clip(codec=codec, fps=10, num_frames=300, rows=96, cols=128, is_noisy=True, codec_options=options)
    same(write(tmp_path / "film.mp4", clip), 3, fps=5.0)


def test_what_cannot_be_cut_is_read_as_ever(film, tmp_path):
    short = write(tmp_path / "short.mp4", Clip(num_frames=20))
    one_key = write(
        tmp_path / "key.mp4", Clip(fps=10, num_frames=200, codec_options={"g": "9999", "keyint_min": "9999"})
    )
    no_index = write(tmp_path / "film.mkv", CLIP)
    for path, settings in (
        (short, {}),
        (one_key, {}),
        (no_index, {}),
        (film, {"fps": None}),
        (film, {"codec": True}),
        (film, {"workers": 1}),
    ):
        with open_video(path, **{"workers": 3, **settings}) as source:
            assert isinstance(source, FileSource)
            next(source)
    with film.open("rb") as file, open_video(file, workers=3) as source:
        assert isinstance(source, FileSource)
    with pytest.raises(InputError, match="workers are 0"):
        open_video(film, workers=17)
    with pytest.raises(SourceError):
        open_video(tmp_path / "none.mp4", workers=3)


def test_closing_early_leaves_no_thread_and_no_file(film):
    files = open_files()
    for count in (0, 1, 20):
        with open_video(film, workers=4) as source:
            assert len(list(itertools.islice(source, count))) == count
        with pytest.raises(StopIteration):
            next(source)
        source.close()
    assert not left_behind(files)
    assert not [one for one in threading.enumerate() if one.name.startswith("onlooker-decoder")]


def test_damage_is_told(film, tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(flipped(film.read_bytes(), 0.6, 4000))
    with open_video(path, workers=3) as source:
        if isinstance(source, PiecesSource):
            frames = list(source)
            assert source.report.damage and len(frames) > 30
            assert [f.time_s for f in frames] == sorted({f.time_s for f in frames})
    with pytest.raises(DamagedSource), open_video(path, workers=3, on_damage="raise") as source:
        list(source)
