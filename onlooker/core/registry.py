"""Find a method by its file name; errors that suggest."""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError

ROOMS = {"encoder": "encode", "compressor": "compress", "memory": "memory", "response": "respond"}
"""What a setting is called, and the room its methods live in."""


@dataclass(frozen=True)
class Setting:
    """One setting of a method: its name, type as text, default and one-line help."""

    name: str
    type: str
    default: Any
    help: str


def names(kind: str) -> list[str]:
    """The names of all methods of a kind (`encoder`, `compressor`, `memory`, `response`), sorted."""
    room = importlib.import_module(f"onlooker.{ROOMS[kind]}")
    return sorted(m.name for m in pkgutil.iter_modules(room.__path__) if not m.name.startswith("_"))


def method_class(kind: str, name: str) -> type:
    """The class of a built-in method, or of a method in a Python file of the caller (`path/to/my_method.py`).

    Raises `InputError`, with the nearest names, when there is none.
    """
    if name.endswith(".py"):
        module = _module_from_file(name)
    elif name in names(kind):
        module = importlib.import_module(f"onlooker.{ROOMS[kind]}.{name}")
    else:
        near = difflib.get_close_matches(name, names(kind), n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"there is no {kind} of that name", given=name, do=f"{hint}one of: {', '.join(names(kind))}")
    base = _base(kind)
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise InputError(
            f"a method file must define one {base.__name__}", given=f"{name} defines {len(found)}", do="split it"
        )
    return found[0]


def make(kind: str, chosen: Any) -> Any:
    """A method from an instance, a name, or `name:key=value,...`.

    Raises `InputError` for an unknown name or setting, or a value of the wrong type.
    """
    if not isinstance(chosen, str):
        base = _base(kind)
        if not isinstance(chosen, base):
            raise InputError(
                f"{kind} must be a name or a {base.__name__}",
                given=type(chosen).__name__,
                do=f"one of: {', '.join(names(kind))}",
            )
        return chosen
    name, _, rest = chosen.partition(":")
    cls = method_class(kind, name)
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if not equals:
            raise InputError(f"settings of {name} are key=value", given=part, do=f"for example {_example(cls, name)}")
        if key in values:
            raise InputError(f"a setting of {name} is given twice", given=key, do="give it once")
        values[key] = text
    return build(cls, name, values)


def build(cls: type, name: str, values: Mapping[str, str]) -> Any:
    """A settings dataclass from texts. Raises `InputError` for unknown keys and values of the wrong type."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    parsed = {}
    for key, text in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"{name} has no such setting", given=key, do=f"{hint}one of: {', '.join(sorted(known)) or 'none'}"
            )
        parsed[key] = _parse(hints[key], text, f"{name}:{key}")
    return cls(**parsed)


def settings(cls: type) -> list[Setting]:
    """The settings of a method class, with the one-line docstring under each field as help."""
    helps = _field_docs(cls)
    rows = []
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not dataclasses.MISSING else None
        kind = (
            f.type
            if isinstance(f.type, str)
            else getattr(f.type, "__name__", str(f.type))
            if isinstance(f.type, type)
            else str(f.type)
        )
        rows.append(Setting(f.name, kind.replace("typing.", ""), default, helps.get(f.name, "")))
    return rows


def caption(cls: type) -> str:
    """The first line of the file a method lives in."""
    return (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0]


def describe(method: Any) -> str:
    """A method as `name:key=value,...`, from which `make` builds it again."""
    name = type(method).__module__.rsplit(".", 1)[-1]
    parts = [
        f"{f.name}={_text(getattr(method, f.name))}"
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != f.default
    ]
    return f"{name}:{','.join(parts)}" if parts else name


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _base(kind: str) -> type:
    contracts = importlib.import_module("onlooker.core.contracts")
    return {
        "encoder": contracts.EncoderAccelerator,
        "compressor": contracts.Compressor,
        "memory": contracts.MemoryPolicy,
        "response": contracts.ResponsePolicy,
    }[kind]


def _example(cls: type, name: str) -> str:
    rows = settings(cls)
    return f"{name}:{rows[0].name}={rows[0].default}" if rows else name


@functools.cache
def _module_from_file(path: str) -> types.ModuleType:
    if not Path(path).is_file():
        raise InputError("there is no such method file", given=path, do="give the path of a Python file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
    spec.loader.exec_module(module)
    return module


def _parse(hint: Any, text: str, where: str) -> Any:
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if text in options:
            return text
        raise InputError(f"{where} has no such value", given=text, do=f"one of: {', '.join(map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in options:
            return None
        return _parse(next(o for o in options if o is not type(None)), text, where)
    if origin is tuple:
        return tuple(_parse(options[0], part, where) for part in text.split("+"))
    if hint is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise InputError(f"{where} is true or false", given=text, do="write true or false")
    try:
        return hint(text)
    except ValueError:
        raise InputError(f"{where} must be of type {hint.__name__}", given=text, do=f"give a {hint.__name__}") from None


def _field_docs(cls: type) -> dict[str, str]:
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[before.target.id] = after.value.value.strip().splitlines()[0]
    return docs
