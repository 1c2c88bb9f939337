"""The overlay shows the right patches, keeps the picture's proportions, and leaves whole files or none."""

import av
import numpy as np
import pytest
from PIL import Image

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.video import _sheet
from onlooker.video.overlay import FRAMES_IN_PICTURE, OverlayWriter

GREEN = (20, 200, 60)


def shot(rows: int = 90, cols: int = 160, grid: int = 4) -> tuple[Frame, np.ndarray, np.ndarray]:
    """A green frame of which the first row of patches was recomputed and the last token was kept."""
    recomputed = np.zeros((grid, grid), np.float32)
    recomputed[0] = 1
    kept = np.zeros((2, 2), bool)
    kept[1, 1] = True
    return Frame(np.full((rows, cols, 3), GREEN, np.uint8), 1.0), recomputed, kept


def test_reused_patches_are_grey_and_recomputed_ones_are_not() -> None:
    frame, recomputed, _ = shot()
    picture = _sheet.tint_recomputed(frame.image, recomputed).astype(int)
    assert np.ptp(picture[40:], axis=2).max() <= 1
    assert np.ptp(picture[:22], axis=2).min() > 50


def test_kept_tokens_stay_bright_and_others_are_dark() -> None:
    frame, _, kept = shot()
    picture = _sheet.mark_kept(frame.image, kept)
    assert tuple(picture[68, 120]) == GREEN and tuple(picture[89, 159]) == _sheet.KEPT
    assert picture[:45].max() < 60


@pytest.mark.parametrize(("rows", "cols"), [(90, 160), (160, 90), (128, 128), (7, 5), (40, 1200)])
@pytest.mark.parametrize("suffix", [".png", ".mp4"])
def test_any_shape_of_frame_fits_on_a_page(tmp_path, rows, cols, suffix) -> None:
    path = tmp_path / f"seen{suffix}"
    with OverlayWriter(path, 1.0) as writer:
        for second in range(8):
            frame, recomputed, kept = shot(rows, cols)
            writer.add(Frame(frame.image, float(second)), recomputed, kept)
    if suffix == ".png":
        with Image.open(path) as picture:
            width = picture.width
    else:
        with av.open(str(path)) as film:
            width = film.streams.video[0].width
            assert sum(1 for _ in film.decode(video=0)) == 8
    assert 600 < width <= 2000 and list(tmp_path.iterdir()) == [path]


def test_proportions_are_kept() -> None:
    assert _sheet.fitted(np.zeros((90, 160, 3), np.uint8)).shape == (152, 272, 3)
    assert _sheet.fitted(np.zeros((1600, 900, 3), np.uint8), film=True).shape == (480, 270, 3)


def test_a_picture_holds_the_newest_frames_only(tmp_path) -> None:
    writer = OverlayWriter(tmp_path / "seen.png", 1.0)
    for _ in range(50):
        writer.add(*shot())
    assert len(writer._shots) == FRAMES_IN_PICTURE
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_a_film_goes_on_when_the_frames_change_their_size(tmp_path) -> None:
    with OverlayWriter(tmp_path / "seen.MP4", 1.0) as writer:
        writer.add(*shot())
        writer.add(*shot(160, 90))
    with av.open(str(tmp_path / "seen.MP4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 2


@pytest.mark.parametrize("suffix", [".png", ".mp4"])
def test_an_error_leaves_nothing_and_an_old_file_as_it_was(tmp_path, suffix) -> None:
    path = tmp_path / f"seen{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), OverlayWriter(path, 1.0) as writer:
        writer.add(*shot())
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_without_frames_nothing_is_written(tmp_path) -> None:
    with OverlayWriter(tmp_path / "seen.png", 1.0):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["seen.gif", "no/seen.png", ".", "folder.png"])
def test_a_bad_place_is_refused_at_once(tmp_path, name) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError):
        OverlayWriter(tmp_path / name, 1.0)


def test_times_read_as_clocks() -> None:
    assert [_sheet.clock_text(s) for s in (0, 7.46, 59.96, 3723)] == ["0:00.0", "0:07.5", "1:00.0", "1:02:03.0"]
