"""A state may hold visual tokens: counted, forked, saved and loaded with every array, and refused when damaged."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass
class Holds(StreamState):
    frames: list[VisualTokens] = field(default_factory=list)


def held() -> Holds:
    extras, about = {"saliency": torch.arange(6.0)}, {"global": torch.ones(1, 2, 4)}
    return Holds([VisualTokens.of_frame(torch.randn(6, 4), (2, 3), 7, 3.5, extras, about)])


def test_tokens_are_counted_and_forked() -> None:
    state = held()
    tensors, _ = state.export()
    assert state.num_bytes() == sum(tensor.nbytes for tensor in tensors.values()) > state.frames[0].nbytes
    twin = state.fork()
    twin.frames[0].features.zero_()
    twin.frames[0].whole["global"].zero_()
    assert state.frames[0].features.abs().sum() > 0 and state.frames[0].whole["global"].sum() == 8


def test_tokens_come_back_as_they_were() -> None:
    state, again = held(), Holds()
    tensors, skeleton = state.export()
    again.load(tensors, json.loads(json.dumps(skeleton)))
    one, two = state.frames[0], again.frames[0]
    for name in ("features", "frame", "time_s", "row", "col", "weight"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert one.grid == two.grid and torch.equal(one.extras["saliency"], two.extras["saliency"])
    assert torch.equal(one.whole["global"], two.whole["global"])


@pytest.mark.parametrize("damage", ["missing", "length", "kind"])
def test_damaged_tokens_are_refused(damage: str) -> None:
    tensors, skeleton = held().export()
    tokens = skeleton["frames"]["list"][0]["of"]
    if damage == "missing":
        del tokens["row"]
    elif damage == "length":
        tensors["frames.0.row"] = tensors["frames.0.row"][:2]
    else:
        tokens["grid"] = 5
    with pytest.raises(InputError):
        Holds().load(tensors, skeleton)
