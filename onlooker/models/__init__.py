"""One file per model family: how it sees, reads, remembers and speaks."""

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onlooker.models import _parts
from onlooker.models._built_in import BUILT_IN, COMMENTARY, NEWEST
from onlooker.models._parts import short_name
from onlooker.models._random import random_model
from onlooker.models._shapes import SHAPES, Shape, shape_of

if TYPE_CHECKING:
    from onlooker.core.contracts import ClipModel, SideTower, VideoModel

__all__ = [
    "BUILT_IN",
    "COMMENTARY",
    "NEWEST",
    "SHAPES",
    "Shape",
    "check_name",
    "families",
    "load",
    "load_any",
    "planned_towers",
    "random_model",
    "shape_of",
    "short_name",
    "stock_network",
]


def families() -> list[str]:
    """The model families there is a file for, sorted; each is the `model_type` of its checkpoints."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_") and not m.ispkg)


def load(source: str | Path, dtype: str = "auto", device: str = "auto", pairs: bool | None = None) -> "VideoModel":
    """A model by built-in name (`pocket`, `pocket-aware`), local folder or hub id (`owner/name`), perhaps with files of
    trained parts behind it (`pocket-aware+my_tower.py+people.safetensors`, see `_parts.py`).

    The family is found by the `model_type` in `config.json`. `dtype` is `auto` (bfloat16 on CUDA, else float32),
    `float32`, `float16` or `bfloat16`; `device` is `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. `pairs` reads frames two at
    a time, as the Qwen families were trained, or not; None is what suits the family. Raises `ModelError` when there is
    no such model, its family has no adapter or no pairs, or its files are missing or damaged.
    """
    name, parts = _parts.split(str(source))
    model = _load_family(*_find(name), str(source), dtype, device, pairs)
    _parts.attach_all(model, parts)
    return model


def load_any(
    source: str | Path, dtype: str = "auto", device: str = "auto", pairs: bool | None = None
) -> "VideoModel | ClipModel":
    """As `load`, but a family without an adapter for which Transformers has an image language model is welcome too.

    It gives a `ClipModel`, which looks at the last frames anew at every question.
    """
    name, parts = _parts.split(str(source))
    folder, kind = _find(name)
    if kind not in families():
        from onlooker.core.errors import ModelError
        from onlooker.models._window import WindowModel, can_load

        if can_load(kind):
            if pairs or parts:
                given = "pairs" if pairs else ", ".join(parts)
                raise ModelError("a model without an adapter sees single pictures only", given=given, do="leave it out")
            return WindowModel.from_pretrained(folder, dtype, device, name=str(source))
    return load(source, dtype, device, pairs)


def planned_towers(source: str) -> "list[SideTower]":
    """The further towers that are named behind a model, made for its sizes without loading it: for planning. Raises
    `InputError` and `ModelError` as `load` does."""
    _, files = _parts.split(source)
    _parts.check(files)
    if not any(file.endswith(".py") for file in files):
        return []
    import torch

    from onlooker.core.contracts import ModelSpec, SideTower

    shape, place = shape_of(source), torch.device("cpu")
    spec = ModelSpec(
        name=shape.name,
        num_layers=shape.text_layers,
        num_query_heads=shape.query_heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_dim=shape.text_dim,
        dtype=torch.bfloat16,
        device=place,
        max_positions=32768,
    )
    made = [_parts.made_for(file, spec, shape.vision_dim) for file in files if file.endswith(".py")]
    return [part for part in made if isinstance(part, SideTower)]


def stock_network(source: str, dtype: str = "auto", device: str = "auto") -> Any:
    """A LLaVA-OneVision network as Transformers makes it, by name, folder or shape (with random weights), for timing it
    beside ours. Raises `ModelError` for other families."""
    from onlooker.core.errors import ModelError
    from onlooker.models._loading import choose_device, choose_dtype, load_network
    from onlooker.models._random import random_network
    from onlooker.models._shapes import QwenShape

    place = choose_device(device)
    shape = SHAPES.get(source)
    folder, kind = (None, "qwen" if isinstance(shape, QwenShape) else "llava_onevision") if shape else _find(source)
    if kind != "llava_onevision":
        do = "leave the stock model out, or give a LLaVA-OneVision"
        raise ModelError("the stock model is timed for one family only", given=f"{source} ({kind})", do=do)
    if shape is not None or folder is None:
        assert shape is not None
        return random_network(shape, choose_dtype(dtype, place), place)
    from transformers import LlavaOnevisionForConditionalGeneration

    return load_network(LlavaOnevisionForConditionalGeneration, folder, choose_dtype(dtype, place), place)


def check_name(name: str) -> None:
    """Raise `ModelError` for a model that cannot be there. What only the hub can tell, loading will tell."""
    from onlooker.models._loading import is_hub_id

    name, parts = _parts.split(name)
    _parts.check(parts)
    if Path(name).expanduser().is_dir() or not is_hub_id(name):
        _find(name)


def _find(name: str) -> tuple[Path, str]:
    """The folder of a checkpoint and its `model_type`, before any weight is read (a hub id is fetched first).

    Raises `ModelError` when there is no such model.
    """
    from onlooker.core.errors import ModelError
    from onlooker.models._loading import find_folder, read_config

    folder = Path(__file__).parent / BUILT_IN[name] if name in BUILT_IN else Path(name).expanduser()
    if name in BUILT_IN and not (folder / "config.json").is_file():
        raise ModelError(
            "this installation lacks the built-in model's weights",
            given=name,
            do="reinstall onlooker, train it (recipes/pocket), or give another model",
        )
    if not folder.is_dir():
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        if near and "/" not in name:
            raise ModelError("there is no model of that name", given=name, do=f"did you mean {near[0]}?")
        folder = find_folder(name)
    return folder, read_config(folder)["model_type"]


def _load_family(folder: Path, kind: str, name: str, dtype: str, device: str, pairs: bool | None) -> "VideoModel":
    from onlooker.core.contracts import VideoModel
    from onlooker.core.errors import ModelError

    if kind not in families():
        near = difflib.get_close_matches(kind, families(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ModelError("no adapter for this model family", given=kind, do=f"{hint}one of: {', '.join(families())}")
    module = importlib.import_module(f"onlooker.models.{kind}")
    found = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, VideoModel) and thing.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{kind}.py must define one VideoModel, not {len(found)}"
    family: Any = found[0]
    return family.from_pretrained(folder, dtype, device, name=name, pairs=pairs)
