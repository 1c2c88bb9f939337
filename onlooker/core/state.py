"""What one method remembers about one stream: sized, forkable, serialisable."""

import copy
import dataclasses
import functools
import inspect
import itertools
import types
import typing
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread

_VALUES = {cls.__name__: cls for cls in (VisualTokens, Unread)}
"""Frozen dataclasses of tensors and numbers that a state may hold."""


@dataclass
class StreamState:
    """Base of every per-stream state.

    A state is a dataclass whose fields are tensors, numbers, strings, None, `VisualTokens`, `Unread` blocks, or lists,
    tuples, deques and dicts of those; a field may also be another state (that of a wrapped method). The session owns
    it; a method receives it and may change it, and keeps nothing anywhere else.

    A frame is worked on with a fork, which takes the state's place once the frame is remembered: a frame that could not
    be leaves no trace. A large state that is written in place is only forked when there may be no room for the frame;
    when anything else fails then, a new state takes its place.
    """

    replaces: ClassVar[bool] = False
    """True for a state whose tensors are replaced and never written to: forks share them, and cost nothing."""

    def __init_subclass__(cls) -> None:
        """Raise `TypeError` for a field that would hide what every state can do."""
        if hidden := sorted({"num_bytes", "exceeds", "fork", "export", "load"} & inspect.get_annotations(cls).keys()):
            raise TypeError(
                f"a state cannot have a field of the name {hidden[0]}: every state has a method of that name"
            )

    def num_bytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(t.numel() * t.element_size() for t in _tensors(vars(self)))

    def exceeds(self, num_bytes: int) -> bool:
        """Whether its tensors hold more bytes."""
        held = itertools.accumulate((t.numel() * t.element_size() for t in _tensors(vars(self))), initial=0)
        return any(total > num_bytes for total in held)

    def fork(self) -> Self:
        """An independent copy: what happens to one is not seen by the other."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            setattr(twin, name, _copy(value, self.replaces))
        return twin

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A snapshot: tensors by path, and a JSON-able skeleton that `load` puts them back into.

        Raises `TypeError` when a field holds something that a state may not hold.
        """
        tensors: dict[str, Tensor] = {}
        skeleton = {f.name: _export(getattr(self, f.name), f.name, tensors) for f in dataclasses.fields(self)}
        return tensors, skeleton

    def load(self, tensors: dict[str, Tensor], skeleton: dict[str, Any]) -> None:
        """Take over a copy of what `export` gave. Raises `InputError` when it came from a state of another class."""
        known = {f.name for f in dataclasses.fields(self)}
        if not isinstance(skeleton, dict) or set(skeleton) != known:
            raise InputError(
                f"a saved state does not fit {type(self).__name__}",
                given=f"fields {', '.join(sorted(map(str, skeleton))) or 'none'}",
                do=f"load a state with {', '.join(sorted(known)) or 'no fields'} (same method, same version)",
            )
        hints = _hints(type(self))
        loaded = {name: _load(value, tensors, getattr(self, name)) for name, value in skeleton.items()}
        for name, value in loaded.items():
            if not _is(value, hints[name]):
                raise InputError(
                    f"a saved state does not fit {type(self).__name__}",
                    given=f"{name} is {ascii(value)[:80]} and should be {hints[name]}",
                    do="load what was saved, unchanged",
                )
        for name, value in loaded.items():
            setattr(self, name, value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, StreamState | VisualTokens | Unread):
        yield from _tensors(vars(value))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from _tensors(item)


def _copy(value: Any, shares: bool) -> Any:
    # Not copy.deepcopy: for a view it copies the whole storage behind it, for instance a batch of all streams.
    if isinstance(value, torch.Tensor):
        return value if shares else value.detach().clone()
    if isinstance(value, StreamState):
        return value.fork()
    if isinstance(value, VisualTokens | Unread):
        return value if shares else type(value)(**{name: _copy(item, shares) for name, item in vars(value).items()})
    if isinstance(value, dict):
        return {key: _copy(item, shares) for key, item in value.items()}
    if isinstance(value, deque):
        return deque((_copy(item, shares) for item in value), maxlen=value.maxlen)
    if isinstance(value, list | tuple):
        return type(value)([_copy(item, shares) for item in value])
    return copy.deepcopy(value)


def _export(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().clone()  # the stream goes on and may write into the tensor
        return {"tensor": path}
    if isinstance(value, StreamState):
        names = [f.name for f in dataclasses.fields(value)]
        return {"state": {name: _export(getattr(value, name), f"{path}.{name}", tensors) for name in names}}
    if isinstance(value, VisualTokens | Unread):
        parts = {name: _export(item, f"{path}.{name}", tensors) for name, item in vars(value).items()}
        return {"value": type(value).__name__, "of": parts}
    if isinstance(value, dict):
        # Pairs, because JSON makes text of an object's keys; numbered, because two keys may look alike as text.
        pairs = [(f"{path}.{i}", key, item) for i, (key, item) in enumerate(value.items())]
        return {"dict": [[_export(key, at, tensors), _export(item, at, tensors)] for at, key, item in pairs]}
    if isinstance(value, list | tuple | deque):
        items = [_export(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        limit = value.maxlen if isinstance(value, deque) else None
        return {type(value).__name__: items, "maxlen": limit}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a state may not hold a {type(value).__name__} ({path})")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """What its fields hold; Any where the annotation names something that is not there any more."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return dict.fromkeys((f.name for f in dataclasses.fields(cls)), Any)


def _is(value: Any, hint: Any) -> bool:
    """Is this what an annotation says? Where it says more than can be looked at, yes."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    kind = type(None) if hint is None else origin or hint
    if hint is Any or not isinstance(kind, type):
        return True
    if kind in (int, float) and isinstance(value, bool):
        return False
    if not isinstance(value, (int, float) if kind is float else kind):
        return False
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_is, value, inner))
    if kind in (list, tuple, deque) and inner:
        return all(_is(item, inner[0]) for item in value)
    if kind is dict and inner:
        return all(_is(key, inner[0]) and _is(item, inner[1]) for key, item in value.items())
    return True


def _load(value: Any, tensors: dict[str, Tensor], current: Any = None) -> Any:
    if not isinstance(value, dict):
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise InputError("a saved state is damaged", given=ascii(value)[:80], do="load what was saved, unchanged")
    if "tensor" in value:
        if not isinstance(value["tensor"], str) or value["tensor"] not in tensors:
            raise InputError("a saved state lacks a tensor", given=ascii(value["tensor"])[:80])
        return tensors[value["tensor"]].clone()  # one snapshot may be loaded into many streams
    if "state" in value:
        if not isinstance(current, StreamState):
            raise InputError("a saved state holds another where there is none", given=ascii(value)[:80])
        nested = current.fork()
        nested.load(tensors, value["state"])
        return nested
    if "value" in value:
        return _load_value(value, tensors)
    if "dict" in value:
        return {_load(key, tensors): _load(item, tensors) for key, item in value["dict"]}
    kind = next((name for name in ("list", "tuple", "deque") if name in value), None)
    if kind is None or not isinstance(value[kind], list):
        raise InputError("a saved state is damaged", given=ascii(value)[:80], do="load what was saved, unchanged")
    # States in a list (those of a chain's links) are loaded into the ones that are there.
    there = list(current) if isinstance(current, list | tuple | deque) and len(current) == len(value[kind]) else None
    items = [_load(item, tensors, there and there[i]) for i, item in enumerate(value[kind])]
    if kind == "deque":
        return deque(items, maxlen=value["maxlen"])
    return items if kind == "list" else tuple(items)


def _load_value(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    cls, parts = _VALUES.get(str(value["value"])), value.get("of")
    made = {name: _load(part, tensors) for name, part in parts.items()} if isinstance(parts, dict) else {}
    if cls is not None and set(made) == set(hints := _hints(cls)) and all(_is(made[n], hints[n]) for n in made):
        inside = [one for item in made.values() if isinstance(item, dict) for one in item.values()]
        try:
            if all(isinstance(one, Tensor) for one in inside):
                return cls(**made)
        except (AssertionError, TypeError):
            pass  # arrays of different lengths, or without any
    raise InputError("a saved state is damaged", given=ascii(value)[:80], do="load what was saved, unchanged")
