import pytest
import torch
from towers import make_frames, make_tower, regroup

from onlooker import encode
from onlooker.core import registry
from onlooker.encode.full import Full
from onlooker.models._siglip import embed


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("image_size", [16, 40])
@torch.no_grad()
def test_equals_the_stock_tower_bit_by_bit(kind, image_size):
    module, tower = make_tower(kind, image_size=image_size)
    pixels = torch.randn(3, 3, image_size, image_size)
    stock = module(pixels, output_hidden_states=True).hidden_states
    hidden = embed(module, pixels)
    assert torch.equal(hidden, stock[0])
    encoded = Full().encode(regroup(tower, tap_layers=frozenset({1})), hidden, [Full().new_state()] * 3)
    assert torch.equal(encoded.hidden, stock[-1])
    assert torch.equal(encoded.taps[1], stock[2])
    assert encoded.refreshed == (True,) * 3 and encoded.recomputed is None


def test_remembers_nothing_and_costs_one():
    module, tower = make_tower()
    state = Full().new_state()
    with torch.no_grad():
        Full().encode(tower, make_frames(module, 1), [state])
    assert state.num_bytes() == 0
    assert Full().cost(tower) == 1.0


def test_both_methods_are_found_by_name():
    assert set(registry.names("encoder")) >= {"full", "stc_published"}
    method = registry.make("encoder", "stc_published:interval=none,recompute_ratio=0.5,layers=0+2,metric=l2")
    assert (method.interval, method.layers, method.metric) == (None, (0, 2), "l2")
    assert registry.make("encoder", registry.describe(method)) == method
    assert all(setting.help for setting in registry.settings(type(method)))


def test_methods_are_attributes_of_the_room():
    assert encode.Full is Full and encode.STCPublished().interval == 4
    assert not hasattr(encode, "Nothing")
