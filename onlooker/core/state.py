"""What one method remembers about one stream: sized, forkable, serialisable."""

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class StreamState:
    """Base of every per-stream state.

    A state is a dataclass whose fields are tensors, numbers, strings, None, or lists, tuples, deques and dicts of
    those. The session owns it; a method receives it and may change it, and keeps nothing anywhere else.
    """

    def num_bytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(t.numel() * t.element_size() for t in _tensors(self.__dict__))

    def fork(self) -> "StreamState":
        """An independent copy: what happens to one is not seen by the other."""
        return copy.deepcopy(self)

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by path, and a JSON-able skeleton that `load` puts them back into."""
        tensors: dict[str, Tensor] = {}
        skeleton = {f.name: _export(getattr(self, f.name), f.name, tensors) for f in dataclasses.fields(self)}
        return tensors, skeleton

    def load(self, tensors: dict[str, Tensor], skeleton: dict[str, Any]) -> None:
        """Take over what `export` gave. The state must be of the same class."""
        for name, value in skeleton.items():
            setattr(self, name, _load(value, tensors))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from _tensors(item)


def _export(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": {key: _export(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple | deque):
        items = [_export(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        limit = value.maxlen if isinstance(value, deque) else None
        return {type(value).__name__: items, "maxlen": limit}
    return value


def _load(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: _load(item, tensors) for key, item in value["dict"].items()}
    kind = next(name for name in ("list", "tuple", "deque") if name in value)
    items = [_load(item, tensors) for item in value[kind]]
    return {"list": list, "tuple": tuple}[kind](items) if kind != "deque" else deque(items, maxlen=value["maxlen"])
