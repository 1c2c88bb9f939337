"""Eight-bit weights: within half a step of the plain ones, loaded like any checkpoint, refused when damaged."""

import shutil

import pytest
import torch
from tiny import make_folder

from onlooker import models
from onlooker.core.errors import ModelError
from onlooker.models import _eight_bits


def test_weights_come_back_within_half_a_step():
    weights = {"matrix": torch.randn(96, 64), "patches": torch.randn(32, 3, 8, 8), "bias": torch.randn(64)}
    back = _eight_bits.unpack(_eight_bits.pack(weights))
    assert set(back) == set(weights)
    for name in ("matrix", "patches"):
        step = weights[name].flatten(1).abs().amax(1) / 127
        assert ((back[name] - weights[name]).flatten(1).abs().amax(1) <= 0.5001 * step).all()
    assert torch.equal(back["bias"], weights["bias"].bfloat16().float())
    assert _eight_bits.pack({"zero": torch.zeros(80, 80)})["zero"].abs().sum() == 0


def test_a_folder_in_eight_bits_is_a_checkpoint(tmp_path):
    plain = make_folder(tmp_path / "plain")
    packed = shutil.copytree(plain, tmp_path / "packed")
    file = _eight_bits.shrink(packed)
    assert not (packed / "model.safetensors").exists()
    assert file.stat().st_size < (plain / "model.safetensors").stat().st_size
    one, two = (models.load(folder, device="cpu") for folder in (plain, packed))
    image = [torch.randint(0, 255, (56, 56, 3), dtype=torch.uint8).numpy()]
    features = []
    for model in (one, two):
        (pixels,) = model.preprocess(image)
        features.append(model.embed_patches(pixels[None]))
    torch.testing.assert_close(features[0], features[1], atol=0.05, rtol=0.05)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load(packed, device="cpu")
