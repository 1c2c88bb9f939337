"""A state is sized, forked, saved and loaded without a thread to where it came from."""

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.core.state import StreamState


@dataclass
class Inner(StreamState):
    mean: Tensor | None = None


@dataclass
class Rich(StreamState):
    count: int = 0
    name: str | None = None
    mean: Tensor | None = None
    recent: deque[Tensor] = field(default_factory=lambda: deque(maxlen=3))
    by_layer: dict[Any, Any] = field(default_factory=dict)
    pair: tuple[float, Tensor | None] = (0.0, None)
    inner: Inner = field(default_factory=Inner)


def rich() -> Rich:
    return Rich(
        count=7,
        name="a",
        mean=torch.ones(4),
        recent=deque([torch.zeros(2), torch.ones(2)], maxlen=3),
        by_layer={1: torch.ones(2), "1": [torch.zeros(1), None], (2, 3): {"x": True}},
        pair=(0.5, torch.ones(1, dtype=torch.bfloat16)),
        inner=Inner(torch.full((3,), 2.0)),
    )


def assert_is_rich(state: Rich) -> None:
    assert (state.count, state.name, state.pair[0]) == (7, "a", 0.5)
    assert state.mean is not None and state.mean.tolist() == [1, 1, 1, 1]
    assert isinstance(state.recent, deque) and state.recent.maxlen == 3
    assert [t.tolist() for t in state.recent] == [[0, 0], [1, 1]]
    assert list(state.by_layer) == [1, "1", (2, 3)] and state.by_layer[1].tolist() == [1, 1]
    assert state.by_layer["1"][1] is None and state.by_layer[(2, 3)] == {"x": True}
    assert state.pair[1] is not None and state.pair[1].dtype == torch.bfloat16
    assert state.inner.mean is not None and state.inner.mean.tolist() == [2, 2, 2]


def spoil(state: Rich) -> None:
    assert state.mean is not None and state.inner.mean is not None and state.pair[1] is not None
    for tensor in (state.mean, state.recent[1], state.by_layer[1], state.pair[1], state.inner.mean):
        tensor.fill_(9)
    state.by_layer["1"].append("more")
    state.recent.append(torch.zeros(1))
    state.count = 0


def test_bytes_are_those_of_the_tensors() -> None:
    assert rich().num_bytes() == 4 * (4 + 2 + 2 + 2 + 1 + 3) + 2
    assert StreamState().num_bytes() == 0
    for state in (rich(), StreamState()):
        held = state.num_bytes()
        assert state.exceeds(held - 1) and not state.exceeds(held)


def test_a_fork_is_independent() -> None:
    state = rich()
    twin = state.fork()
    spoil(state)
    assert_is_rich(twin)


def test_a_fork_of_a_view_does_not_copy_what_is_behind_it() -> None:
    batch = torch.zeros(1000, 4)
    twin = Rich(mean=batch[3]).fork()
    assert twin.mean is not None and twin.mean.untyped_storage().nbytes() == 16


def test_a_fork_leaves_the_graph_behind() -> None:
    twin = Rich(mean=torch.ones(2, requires_grad=True) * 2).fork()
    assert twin.mean is not None and not twin.mean.requires_grad


def test_a_state_survives_json() -> None:
    state = rich()
    tensors, skeleton = state.export()
    text = json.dumps(skeleton)
    spoil(state)  # an export is a snapshot
    loaded, again = Rich(), Rich()
    loaded.load(tensors, json.loads(text))
    assert_is_rich(loaded)
    spoil(loaded)  # and one snapshot may be loaded twice
    again.load(tensors, json.loads(text))
    assert_is_rich(again)


def test_a_state_of_another_class_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit Inner"):
        Inner().load(*rich().export())


def test_what_cannot_be_saved_is_named() -> None:
    state = rich()
    state.by_layer["bad"] = {1, 2}
    with pytest.raises(TypeError, match=r"set \(by_layer"):
        state.export()


def test_a_field_may_not_hide_what_every_state_can_do():
    with pytest.raises(TypeError, match="a state cannot have a field of the name num_bytes"):

        @dataclass
        class Wrong(StreamState):
            num_bytes: int = 0
