import importlib.util

import numpy as np
import pytest
import torch

from onlooker.core.errors import ModelError
from onlooker.models._pixels import Pixels

CPU = torch.device("cpu")
SETTINGS = {"image_mean": [0.48, 0.45, 0.40], "image_std": [0.26, 0.27, 0.28]}


def pictures():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = small.repeat(20, 0).repeat(20, 1)
    return [rng.integers(0, 256, (240, 320, 3), dtype=np.uint8), smooth, small, smooth[::-1], smooth[:112, :112]]


def test_equals_the_processor_of_pil_within_two_grey_levels():
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    side = {"height": 112, "width": 112}
    processor = LlavaOnevisionImageProcessorPil(**SETTINGS, size=side, image_grid_pinpoints=[[112, 112]])
    ours = Pixels((112, 112), *map(tuple, SETTINGS.values())).prepare(pictures(), CPU)
    level = 1 / 255 / min(SETTINGS["image_std"])
    for picture, mine in zip(pictures(), ours, strict=True):
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0, 0]
        assert mine.shape == theirs.shape == (3, 112, 112)
        assert float((mine - theirs).abs().max()) <= 2.01 * level


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="the video processor needs torchvision")
def test_equals_the_video_processor_bit_by_bit():
    from transformers import LlavaOnevisionVideoProcessor

    processor = LlavaOnevisionVideoProcessor(**SETTINGS, size={"height": 112, "width": 112})
    ours = Pixels((112, 112), *map(tuple, SETTINGS.values())).prepare(pictures(), CPU)
    for picture, mine in zip(pictures(), ours, strict=True):
        video = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
        theirs = processor(video, return_tensors="pt")["pixel_values_videos"][0, 0]
        assert float((mine - theirs).abs().max()) <= 1e-6


def test_sizes_may_differ_within_a_call_and_order_is_kept():
    pixels = Pixels((28, 28))
    images = pictures()
    together = pixels.prepare(images, CPU)
    for image, picture in zip(images, together, strict=True):
        assert torch.equal(pixels.prepare([image], CPU)[0], picture)
    assert pixels.prepare([], CPU) == []


def test_read_only_pictures_are_accepted():
    picture = np.zeros((28, 28, 3), dtype=np.uint8)
    picture.flags.writeable = False
    assert torch.equal(Pixels((28, 28)).prepare([picture], CPU)[0], torch.full((3, 28, 28), -1.0))


@pytest.mark.parametrize(
    "name, text",
    [
        ("preprocessor_config.json", '{"image_mean": [0.5], "image_std": [0.5], "size": {"shortest_edge": 4}}'),
        (
            "preprocessor_config.json",
            '{"image_mean": [0.5], "image_std": [0.5], "size": {"height": 4, "width": 4}, "resample": 1}',
        ),
        ("processor_config.json", '{"video_processor": {}}'),
        ("other.json", "{}"),
    ],
)
def test_settings_we_cannot_follow_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match="image processor"):
        Pixels.from_folder(tmp_path)


def test_settings_are_read_in_all_three_places(tmp_path):
    row = '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 4, "width": 6}, "resample": 2}'
    for name, text in (
        ("preprocessor_config.json", row),
        ("processor_config.json", f'{{"image_processor": {row}}}'),
        ("video_preprocessor_config.json", row),
    ):
        (tmp_path / name).write_text(text)
        read = Pixels.from_folder(tmp_path)
        (tmp_path / name).unlink()
        assert (read.size, read.mean, read.mode) == ((4, 6), (0.1, 0.2, 0.3), "bilinear")
