"""Find a method by its file name; errors that suggest."""

import ast
import dataclasses
import difflib
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import pkgutil
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onlooker.core.errors import InputError
from onlooker.core.kinds import KINDS
from onlooker.core.method_text import MethodText, NoSetting, read_methods


@dataclass(frozen=True)
class Setting:
    """One setting of a method: its name, type as text, default and one-line help."""

    name: str
    type: str
    default: Any
    help: str


def names(kind: str) -> list[str]:
    """The names of all methods of a kind (see `kinds.KINDS`), sorted.

    Raises `InputError` for another kind.
    """
    if kind not in KINDS:
        raise InputError("there is no such kind of method", given=str(kind), do=f"one of: {', '.join(KINDS)}")
    room = importlib.import_module(KINDS[kind].room)
    return sorted(m.name for m in pkgutil.iter_modules(room.__path__) if not m.name.startswith("_"))


def method_class(kind: str, name: str) -> type:
    """The class of a built-in method, or of a method in a Python file of the caller (`path/to/my_method.py`).

    Raises `InputError`, with the nearest names, when there is none, and when the file cannot be run or does not hold
    exactly one frozen dataclass of that kind (classes whose name begins with an underscore do not count).
    """
    known = names(kind)
    if name.endswith(".py"):
        module = _module_from_file(name)
    elif name in known:
        module = importlib.import_module(f"{KINDS[kind].room}.{name}")
    else:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        rest = f"one of: {', '.join(known)}; or a file of your own (my_method.py)"
        raise InputError(f"there is no {kind} of that name", given=name, do=f"{hint}{rest}")
    base = KINDS[kind].load_base()
    found = {
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    }
    if len(found) != 1:
        listed = ", ".join(sorted(c.__name__ for c in found)) or "none"
        do = "keep one and move the others to files of their own" if found else f"write one class {base.__name__}"
        raise InputError(f"a method file must define one {base.__name__}", given=f"{name} defines {listed}", do=do)
    (cls,) = found
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        given = f"{cls.__name__} in {name}"
        raise InputError(
            "a method must be a frozen dataclass", given=given, do="write @dataclass(frozen=True) above it"
        )
    return cls


def kinds_in(path: str) -> list[str]:
    """The kinds of methods that a Python file defines. Raises `InputError` when it cannot be run, or defines none."""
    own = own_classes(path)
    found = [kind.name for kind in KINDS.values() if any(issubclass(c, kind.load_base()) for c in own)]
    if not found:
        bases = ", ".join(kind.load_base().__name__ for kind in KINDS.values())
        given = f"{path} defines {', '.join(sorted(c.__name__ for c in own)) or 'no class'}"
        raise InputError(
            "there is no method in the file", given=given, do=f"write a class that extends one of: {bases}"
        )
    return found


def own_classes(path: str) -> list[type]:
    """The classes of a Python file whose names do not begin with an underscore. Raises `InputError` when it cannot be
    run."""
    classes = [c for c in vars(_module_from_file(path)).values() if inspect.isclass(c)]
    return [c for c in classes if _is_from_file(c.__module__) and c.__name__[0] != "_"]


def class_named(kind: str, class_name: str) -> type | None:
    """The built-in method whose class has this name (`STCPruner` is `stc_pruner`), or None. Imports no other."""
    for name in names(kind):
        if name.replace("_", "") == class_name.lower():
            return method_class(kind, name)
    return None


def make(kind: str, chosen: Any) -> Any:
    """A method from an instance, or from text: a name, `name:key=value,...`, `outer(inner):key=value,...` for one that
    works within another, `one+other` for a chain. A path to a Python file may stand for a name.

    Raises `InputError` for text of no such form, an unknown name or setting, or a value of the wrong type.
    """
    chosen = os.fspath(chosen) if isinstance(chosen, os.PathLike) else chosen
    if not isinstance(chosen, str):
        base = KINDS[kind].load_base()
        if not isinstance(chosen, base):
            raise InputError(
                f"{kind} must be a name or a {base.__name__}",
                given=f"the class {chosen.__name__}" if inspect.isclass(chosen) else type(chosen).__name__,
                do="make an instance of it" if inspect.isclass(chosen) else f"one of: {', '.join(names(kind))}",
            )
        return chosen
    links = [_made(kind, link) for link in _read(chosen)]
    return links[0] if len(links) == 1 else chain(kind, links)


def chain(kind: str, links: Sequence[Any]) -> Any:
    """Several methods of a kind as one: each gets what the one before let through.

    Raises `InputError` where this kind, or one of these methods, cannot be chained.
    """
    if (cls := KINDS[kind].load_chain()) is None:
        can = ", ".join(one.name for one in KINDS.values() if one.chain)
        raise InputError(
            f"methods of the kind {kind} cannot be chained",
            given="+".join(map(describe, links)),
            do=f"name one of them (chains are for: {can})",
        )
    return cls(tuple(links))


def _read(text: str) -> tuple[MethodText, ...]:
    known = {name for kind in KINDS for name in names(kind)}
    try:
        return read_methods(text, known.__contains__)
    except NoSetting as error:
        kind = next((kind for kind in KINDS if error.name in names(kind)), None)
        if kind is None:
            raise
        raise NoSetting(error.name, error.part, _example(method_class(kind, error.name), error.name)) from None


def _made(kind: str, text: MethodText) -> Any:
    cls = method_class(kind, text.name)
    if not text.inner:
        return build(cls, text.name, text.settings)
    place = next(((f, inner) for f, inner in _inner_kinds(cls).items()), None)
    if place is None:
        do = f"leave out the brackets; settings are {text.name}:key=value"
        raise InputError(f"{text.name} takes no method in brackets", given=text.inner[0].name, do=do)
    name, inner_kind = place
    made = [_made(inner_kind, link) for link in text.inner]
    inner = made[0] if len(made) == 1 else chain(inner_kind, made)
    return build(cls, text.name, text.settings, {name: inner})


def inner_setting(cls: type) -> str | None:
    """The setting of a method that is a method itself, which is written in brackets; None: there is none."""
    return next(iter(_inner_kinds(cls)), None)


def _inner_kinds(cls: type) -> dict[str, str]:
    """The settings of a method that are methods themselves, in their order, and the kind of each."""
    bases = {kind.load_base(): name for name, kind in KINDS.items()}
    hints = typing.get_type_hints(cls)
    found = {}
    for f in dataclasses.fields(cls):
        for option in (hints[f.name], *typing.get_args(hints[f.name])):
            if f.init and inspect.isclass(option) and option in bases:
                found[f.name] = bases[option]
    return found


def build(cls: type, name: str, values: Mapping[str, str], made: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A settings dataclass from texts, and from values that are `made` already (methods within methods).

    Raises `InputError` for unknown keys and values of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    inner = _inner_kinds(cls)
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    parsed = dict(made)
    for key, text in values.items():
        if key in inner:
            raise InputError(
                f"{key} is a method of its own", given=f"{key}={text}", do=f"write {name}({text}):key=value"
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"{name} has no such setting", given=key, do=f"{hint}one of: {', '.join(sorted(known)) or 'none'}"
            )
        try:
            parsed[key] = _parse(hints[key], text, f"{name}:{key}")
        except InputError as error:
            if f"{key}_ratio" in known and _is_share(text):
                error = InputError(error.what, given=text, do=f"did you mean {key}_ratio={text}?")
            raise error from None
    required = [f.name for f in dataclasses.fields(cls) if f.init and _default(f) is dataclasses.MISSING]
    if missing := [key for key in required if key not in parsed]:
        do = f"write {name}({inner[missing[0]].upper()})" if missing[0] in inner else f"write {name}:{missing[0]}=..."
        raise InputError(f"{name} needs a setting", given="none", do=do)
    return cls(**parsed)


def settings(cls: type) -> list[Setting]:
    """The settings of a method class, with the one-line docstring under each field as help."""
    helps = _field_docs(cls)
    rows = []
    for f in dataclasses.fields(cls):
        if f.init:
            default = _default(f)
            kind = f.type.__name__ if isinstance(f.type, type) and not typing.get_args(f.type) else str(f.type)
            default = None if default is dataclasses.MISSING else default
            rows.append(Setting(f.name, kind.replace("typing.", ""), default, helps.get(f.name, "")))
    return rows


def caption(cls: type) -> str:
    """The first line of the file a method lives in; empty when the file says nothing."""
    return next(iter((sys.modules[cls.__module__].__doc__ or "").strip().splitlines()), "")


def describe(method: Any) -> str:
    """A method as text, from which `make` builds it again: `name:key=value,...`, `outer(inner):key=value,...` for one
    within another, `one+other` for a chain."""
    if links := _links(method):
        return "+".join(map(describe, links))
    module = sys.modules[type(method).__module__]
    name = str(module.__file__) if _is_from_file(module.__name__) else module.__name__.rsplit(".", 1)[-1]
    changed = [f.name for f in dataclasses.fields(method) if f.init and getattr(method, f.name) != _default(f)]
    if inner := inner_setting(type(method)) if changed else None:
        if inner in changed and getattr(method, inner) is not None:
            name = f"{name}({describe(getattr(method, inner))})"
        changed = [key for key in changed if key != inner]
    parts = [f"{key}={_text(getattr(method, key))}" for key in changed]
    return f"{name}:{','.join(parts)}" if parts else name


def _links(method: Any) -> Sequence[Any]:
    """The links of a chain; nothing for any other method."""
    chains = [kind for kind in KINDS.values() if kind.chain]
    return next((method.links for kind in chains if type(method) is kind.load_chain()), ())


def _default(f: dataclasses.Field) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, float):
        return str(value).replace("e+", "e")  # the plus sign separates the members of a tuple
    return str(value)


def _example(cls: type, name: str) -> str:
    rows = [row for row in settings(cls) if row.default is not None] or settings(cls)
    return f"{name}:{rows[0].name}={_text(rows[0].default)}" if rows else f"{name} (it has no settings)"


_FILE_MODULES = "onlooker_method_file"


def _is_from_file(module_name: str) -> bool:
    return module_name.startswith(f"{_FILE_MODULES}_")


def _module_from_file(path: str) -> types.ModuleType:
    place = Path(path)
    if not place.is_file():
        raise InputError("there is no such method file", given=path, do="give the path of a Python file")
    return _load_file(place.resolve(), place.stat().st_mtime_ns)


@functools.cache
def _load_file(path: Path, changed_ns: int) -> types.ModuleType:
    # The module's name must be unlike any other: a file may be called random.py, and two folders may hold one name.
    name = f"{_FILE_MODULES}_{hashlib.sha256(f'{path} {changed_ns}'.encode()).hexdigest()[:12]}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and get_type_hints look the module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        given = f"{path}: {type(error).__name__}: {error}"
        raise InputError("a method file cannot be run", given=given, do="run it with python to see where") from error
    return module


def _parse(hint: Any, text: str, where: str) -> Any:
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        for option in options:
            if text == str(option):
                return option
        near = difflib.get_close_matches(text, list(map(str, options)), n=1)
        hinted = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{where} has no such value", given=text, do=f"{hinted}one of: {', '.join(map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        return _parse_union(options, text, where)
    if origin is tuple:
        parts = text.split("+") if text else []
        hints = [options[0]] * len(parts) if options[-1] is Ellipsis else list(options)
        if len(hints) != len(parts):
            raise InputError(f"{where} has {len(hints)} members", given=text, do="separate them with +")
        return tuple(_parse(one, part, where) for one, part in zip(hints, parts, strict=True))
    if hint is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise InputError(f"{where} is true or false", given=text, do="write true or false")
    kind = getattr(hint, "__name__", str(hint))
    try:
        value = hint(text)
    except (ValueError, TypeError):
        raise InputError(f"{where} must be of type {kind}", given=text, do=f"give {_a(kind)}") from None
    if isinstance(value, float) and math.isnan(value):
        raise InputError(f"{where} must be a number", given=text, do="give a number")
    return value


def _parse_union(options: tuple[Any, ...], text: str, where: str) -> Any:
    if text.lower() == "none" and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    for kind in kinds[:-1]:
        try:
            return _parse(kind, text, where)
        except InputError:
            continue  # perhaps it is of the next kind
    return _parse(kinds[-1], text, where)


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _a(kind: str) -> str:
    return {"int": "a whole number", "float": "a number"}.get(kind, f"a {kind}")


def _field_docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):  # a setting may be inherited, and so is its help
        if dataclasses.is_dataclass(owner):
            docs.update(_own_field_docs(owner))
    return docs


def _own_field_docs(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # typed at a prompt: there is no source to read
        return {}
    body = ast.parse(textwrap.dedent(source)).body[0]
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
