"""Trained parts that are named behind a model: `pocket-aware+my_tower.py+people.safetensors`.

A Python file defines one `Adapter` or `SideTower`, which is made for the model (`for_model`); a safetensors file
holds soft prefixes by name, rows `[tokens, hidden_dim]` each. Files are run and read as those of the caller's own
methods are: name none that you do not trust.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from onlooker.core.contracts import ModelSpec, VideoModel

ENDINGS = (".py", ".safetensors")


def split(source: str) -> tuple[str, tuple[str, ...]]:
    """A model's name, and the files of the parts behind it."""
    if Path(source).expanduser().exists():
        return source, ()
    name, *rest = source.split("+")
    while rest and not rest[0].endswith(ENDINGS):  # a plus sign within the model's name
        name = f"{name}+{rest.pop(0)}"
    return name, tuple(rest)


def short_name(source: str) -> str:
    """The last word of a model's name and of each part's: `pocket+tower.py` of `models/pocket+parts/tower.py`."""
    name, files = split(source)
    return "+".join([Path(name).name or name, *(Path(file).name for file in files)])


def check(files: Sequence[str]) -> None:
    """Raise `InputError` for a part that is none, as far as that can be told without the model."""
    for file in files:
        if not file.endswith(ENDINGS):
            do = f"a file that ends in {' or '.join(ENDINGS)}"
            raise InputError("there is no such trained part", given=file, do=do)
        if not Path(file).expanduser().is_file():
            raise InputError("there is no such trained part", given=file, do="give an existing file")
        if file.endswith(".py"):
            part_class(file)


def part_class(file: str) -> Any:
    """The one `Adapter` or `SideTower` that a Python file defines. Raises `InputError` unless there is just one."""
    from onlooker.core import registry
    from onlooker.core.contracts import Adapter, SideTower

    found = [one for one in registry.own_classes(file) if issubclass(one, Adapter | SideTower)]
    if len(found) != 1:
        given = f"{file} defines {', '.join(one.__name__ for one in found) or 'none'}"
        raise InputError("a file of a trained part defines one Adapter or SideTower", given=given, do="write one class")
    return found[0]


def made_for(file: str, spec: "ModelSpec", tower_dim: int) -> Any:
    """The part in a Python file, for a model of these sizes. Raises `InputError` when it cannot be made."""
    kind = part_class(file)
    try:
        return kind.for_model(spec, tower_dim)
    except TypeError as error:
        do = "write a classmethod for_model(cls, spec, tower_dim)"
        raise InputError("a trained part cannot be made", given=f"{kind.__name__}: {error}", do=do) from error


def attach_all(model: "VideoModel", files: Sequence[str]) -> None:
    """Attach the parts in these files, in their order. Raises `InputError` for what does not fit the model."""
    from onlooker.core.contracts import SideTower

    check(files)
    for file in files:
        if file.endswith(".safetensors"):
            model.prefixes = {**model.prefixes, **read_prefixes(file, model)}
            continue
        part = made_for(file, model.spec, model.tower_dim)
        if isinstance(part, SideTower):
            model.attach_tower(part)
        else:
            model.attach(part)


def read_prefixes(file: str, model: "VideoModel") -> dict[str, "Tensor"]:
    """The soft prefixes of a file, on the model's device. Raises `InputError` for another width, or damage."""
    from safetensors.torch import load_file

    try:
        found = load_file(Path(file).expanduser())
    except Exception as error:  # safetensors has a kind of its own
        raise InputError("soft prefixes cannot be read", given=f"{file}: {error}", do="a safetensors file") from error
    width = model.spec.hidden_dim
    for name, rows in found.items():
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != width or not rows.is_floating_point():
            given, do = f"{name} in {file}: {list(rows.shape)} of {rows.dtype}", f"rows [tokens, {width}] by name"
            raise InputError("a soft prefix has rows of the language model's width", given=given, do=do)
    return {name: rows.to(model.spec.device, model.spec.dtype) for name, rows in found.items()}
