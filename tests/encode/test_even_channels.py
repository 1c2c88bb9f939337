"""Channels of keys far larger than others: the tower is the same function, and 4 bits must not lose it."""

import pytest
import torch
import torch.nn.functional as F
from test_stc_cacher import dense, relative, seen

from onlooker.encode._packed import packed_layers
from onlooker.encode.stc_corrected import STCCorrected
from onlooker.encode.stc_corrected._even import EvenLayer, evened

METHOD = STCCorrected(tau=0.1, recompute_ratio=1, project_tau=0, reference_dtype="int8")


@torch.no_grad()
def planted(kind, size=16.0):
    """A tower with every seventh channel of its keys larger, and of its queries smaller; and frames."""
    tower, frames = seen(kind)
    for layer in tower.layers:
        layer.keys.weight[::7] *= size
        layer.keys.bias[::7] *= size
        layer.queries.weight[::7] /= size
        layer.queries.bias[::7] /= size
    return tower, frames


def error(tower, frames):
    state, expected = METHOD.new_state(), dense(tower, frames).hidden
    made = [METHOD.encode(tower, frame[None], [state]).hidden[0] for frame in frames]
    return sum(relative(one, expected[number]) for number, one in enumerate(made)) / len(made)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_large_channels_of_keys_cost_nothing(kind, monkeypatch):
    plain, large = error(*seen(kind)), error(*planted(kind))
    assert large == pytest.approx(plain, rel=0.2)
    monkeypatch.setattr("onlooker.encode.stc_corrected.evened", lambda tower, like: tower)
    assert error(*planted(kind)) > 1.3 * plain, "nothing was planted"


@torch.no_grad()
def test_packed_layers_have_the_same_factors():
    tower, frames = planted("siglip")
    even, dim = evened(tower, frames[0]), tower.dim
    normed = tower.layers[0].norm(frames[0][None])
    for plain, packed in zip(even.layers, packed_layers(even), strict=True):
        made = F.linear(normed, *packed.query_value_key).split(dim, dim=-1)
        for mine, expected in zip(made, (plain.queries(normed), plain.values(normed), plain.keys(normed)), strict=True):
            assert relative(mine, expected) < 1e-6
    scores, before = (
        [one.scores(one.queries(normed), one.keys(normed), None, None) for one in some]
        for some in (even.layers, tower.layers)
    )
    assert all(relative(mine, expected) < 1e-6 for mine, expected in zip(scores, before, strict=True))


@torch.no_grad()
def test_queries_and_keys_that_are_turned_by_place_stay_as_they_are():
    tower, frames = seen("qwen2_5_vl")
    for layer in tower.layers:
        layer._qkv.weight[: tower.dim : 7] /= 16
        layer._qkv.weight[tower.dim : 2 * tower.dim : 7] *= 16
    assert not any(isinstance(layer, EvenLayer) for layer in evened(tower, frames[0]).layers)
