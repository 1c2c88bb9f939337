"""The settings of a run: everything its answers depend on, as one file, and the system they describe."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from onlooker.core import registry
from onlooker.core.contracts import EncoderAccelerator
from onlooker.core.errors import InputError
from onlooker.core.kinds import defaults, telling
from onlooker.core.records import QueryRecord
from onlooker.evals import readers, suites
from onlooker.evals.item import Item, Reading, Rejected
from onlooker.evals.systems import EngineSystem, System
from onlooker.world.levels import LEVEL_NAMES

CONTROLS = ("oracle", "yes", "best_constant", "blind_clock", "guess", "text_only", "peek", "crash")
"""Systems that may stand in the place of the engine; `oracle:0.2` errs in one answer of five, `guess:1` is seed 1."""
SIDES = ("comment", "speech", "asr")
"""Kinds of text beside a video."""
_SEALED = re.compile(r"sealed:[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OWN_COMPRESSORS = ("oracle", "lower_resolution")


# One setting for every kind of method that an engine has.
_Methods: Any = dataclasses.make_dataclass(
    "_Methods", [(kind, str, text) for kind, text in defaults().items()], frozen=True
)


@dataclass(frozen=True)
class RunSettings(_Methods):
    """What is asked, and who is asked. Two runs with equal settings give equal answers."""

    suite: str = "pocketworld"
    limit: int = 200
    seed: int = 0
    seeds: str = ""
    """`sealed:NAME` derives the clips from a name instead of `seed`."""
    level: str = "L0"
    """A level of Pocket World above L0 is a harder world, for the suite `pocketworld`."""
    annotations: str = ""
    videos: str = ""
    model: str = "pocket-aware"
    prefix: str = ""
    """Soft prefixes that the model knows, by name and with plus signs between, written before each video."""
    side: str = ""
    """Kinds of the text beside a video that go into memory as it comes, with plus signs between: comment+speech."""
    control: str = ""
    fps: float = 1.0
    pace: str = "max"
    parallel: int = 8
    max_new_tokens: int = 12
    device: str = "auto"
    dtype: str = "auto"
    pairs: bool | None = None
    device_budget_bytes: int | None = None
    host_budget_bytes: int | None = None
    kv: str = ""
    disk: str = ""
    arithmetic: str = "model"
    layout: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise InputError(
                "fps must lie above 0 and up to 240", given=str(self.fps), do="use 1 for one frame a second"
            )
        if self.level not in LEVEL_NAMES:
            raise InputError("there is no such level", given=self.level, do=f"one of: {', '.join(LEVEL_NAMES)}")
        if self.limit < 1 or self.parallel < 1:
            given = f"limit={self.limit}, parallel={self.parallel}"
            raise InputError("a run needs questions and a lane to put them in", given=given, do="use 1 or more")
        if self.seeds and not _SEALED.fullmatch(self.seeds):
            do = "sealed:NAME with letters, digits, dots and dashes, or --seed"
            raise InputError("clips are chosen by a number or a sealed name", given=self.seeds, do=do)
        if self.pace not in ("max", "realtime"):
            raise InputError("unknown pace", given=self.pace, do="use max or realtime")
        if unknown := set(filter(None, self.side.split("+"))) - set(SIDES):
            do = f"{' or '.join(SIDES)}, with plus signs between"
            raise InputError("there is no such side text", given=", ".join(sorted(unknown)), do=do)
        if self.control.split(":")[0] not in ("", *CONTROLS):
            raise InputError("there is no such control", given=self.control, do=f"one of: {', '.join(CONTROLS)}")

    @property
    def first_seed(self) -> int:
        """The seed of the first clip. A sealed name gives one far from all numbers that anybody would type."""
        if not self.seeds:
            return self.seed
        return 2**40 + int.from_bytes(hashlib.sha256(self.seeds.encode()).digest()[:5], "big")

    @property
    def clips(self) -> str:
        """Which clips these are, in words."""
        level = "" if self.level == "L0" else f"level {self.level}, "
        return level + (self.seeds or f"seeds from {self.seed}")

    @property
    def key(self) -> str:
        """A short name for these settings; the device and how many videos run side by side are no part of it."""
        kinds = self.methods.keys()
        rest = {k: v for k, v in self.as_dict().items() if k not in ("name", "parallel", "device", *kinds)}
        rest |= telling(self.methods)
        for name in ("kv", "disk", "prefix", "side"):
            if not rest[name]:  # as the keys were before there was a choice
                del rest[name]
        for name, usual in (("pairs", None), ("arithmetic", "model")):
            if rest[name] == usual:
                del rest[name]
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """What tables call this run."""
        if self.name or self.control:
            return self.name or self.control
        rate = f" at {self.fps:g} fps" if self.fps != 1.0 else ""
        stored = f" + kv {self.kv}" if self.kv else ""
        stored += f" + {self.arithmetic}" if self.arithmetic != "model" else ""
        stored += f" + prefix {self.prefix}" if self.prefix else ""
        stored += f" + {self.side}" if self.side else ""
        return " + ".join(telling(self.methods).values()) + stored + rate

    @property
    def methods(self) -> dict[str, str]:
        """The method of every kind, by kind."""
        return {kind: getattr(self, kind) for kind in defaults()}

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)


def from_dict(values: dict[str, Any]) -> RunSettings:
    """Settings from a mapping. Raises `InputError` for unknown names and wrong types."""
    fields = {field.name: field for field in dataclasses.fields(RunSettings)}
    if unknown := sorted(set(values) - set(fields)):
        raise InputError("a run has no such setting", given=", ".join(unknown), do=f"one of: {', '.join(fields)}")
    texts = {key: "none" if value is None else str(value) for key, value in values.items()}
    return registry.build(RunSettings, "run", texts)


def load_items(settings: RunSettings) -> Reading:
    """The questions of a run, with the rows that cannot be asked."""
    if settings.suite.replace("-", "_") in suites.names():
        return Reading(tuple(suites.items(settings.suite, settings.limit, settings.first_seed, settings.level)))
    if settings.suite not in readers.names():
        do = f"one of: {', '.join(suites.names())}; with annotations and videos: {', '.join(readers.names())}"
        raise InputError("there is no such suite", given=settings.suite, do=do)
    if not settings.annotations or not settings.videos:
        do = "--annotations FILE --videos FOLDER"
        raise InputError("a published benchmark needs its files", given=settings.suite, do=do)
    reading = readers.read(settings.suite, settings.annotations, settings.videos)
    return Reading(tuple(_first(reading.items, settings.limit)), reading.rejected)


def _first(items: tuple[Item, ...], limit: int) -> Iterator[Item]:
    for item in items:
        if limit <= 0:
            return
        queries: tuple[QueryRecord, ...] = item.queries[:limit]
        limit -= len(queries)
        yield dataclasses.replace(item, queries=queries)


def make_system(settings: RunSettings, reading: Reading, encoder: EncoderAccelerator | None = None) -> System:
    """The engine of these settings, or the control that stands in its place. `encoder` stands for a
    dense tower (`evals/sharing.py`).

    Raises `InputError` or `ModelError` for what cannot be built.
    """
    from onlooker.evals import controls

    kind, _, value = settings.control.partition(":")
    if kind == "oracle":
        return controls.Oracle(float(value or 0.0))
    if kind == "yes":
        return controls.Constant("yes")
    if kind == "best_constant":
        return controls.BestConstant(reading.items)
    if kind == "blind_clock":
        return controls.BlindClock(float(value or 6.0))
    if kind == "guess":
        return controls.Guessing(int(value or 0))
    system = _engine_system(settings, encoder)
    if kind == "text_only":
        return controls.TextOnly(system)
    if kind == "peek":
        return controls.Peeking(system, float(value or 5.0), settings.fps)
    return controls.Crashing(system, int(value or 10)) if kind == "crash" else system


def _engine_system(settings: RunSettings, encoder: EncoderAccelerator | None) -> EngineSystem:
    from onlooker.engine import Engine
    from onlooker.engine.window_engine import WindowEngine

    methods = _made(settings)
    model = model_of(settings)
    from onlooker.core.contracts import ClipModel

    if encoder is not None and settings.encoder == "full":
        methods["encoder"] = encoder
    if isinstance(model, ClipModel):
        engine = WindowEngine(model, **methods, profile=True)
    else:
        layout: Any = settings.layout or None
        engine = Engine(
            model,
            **methods,
            layout=layout,
            profile=True,
            device_budget_bytes=settings.device_budget_bytes,
            host_budget_bytes=settings.host_budget_bytes,
            kv=settings.kv,
            disk=settings.disk,
            arithmetic=settings.arithmetic,
        )
    prefixes = tuple(name for name in settings.prefix.split("+") if name)
    for name in prefixes:
        engine.prefix_rows(name)  # one that the model does not know fails the run, not each of its videos
    side = tuple(kind for kind in settings.side.split("+") if kind)
    return EngineSystem(engine, settings.max_new_tokens, prefixes, side)


def model_of(settings: RunSettings) -> Any:
    """The model of a run, loaded once in a process."""
    return _model(settings.model, settings.dtype, settings.device, settings.pairs)


@lru_cache(maxsize=1)
def _model(source: str, dtype: str, device: str, pairs: bool | None) -> Any:
    """The model, which the runs of a grid share: it holds no state."""
    from onlooker import models

    return models.load(source, dtype=dtype, device=device, pairs=pairs)


def _made(settings: RunSettings) -> dict[str, Any]:
    """The methods of a run: those of the library, or one of the two controls that only make sense here."""
    from onlooker.evals.lower_resolution import LowerResolution
    from onlooker.evals.oracle import OracleTokens

    made = {}
    for kind, text in settings.methods.items():
        name, _, rest = text.partition(":")
        if kind != "compressor" or name not in OWN_COMPRESSORS:
            made[kind] = registry.make(kind, text)
            continue
        values = dict(part.split("=", 1) for part in rest.split(",") if "=" in part)
        made[kind] = registry.build(OracleTokens if name == "oracle" else LowerResolution, name, values)
    return made


def check(settings: RunSettings) -> None:
    """Raise `InputError` for methods that do not exist, before anything is loaded."""
    _made(settings)
    if settings.suite.replace("-", "_") not in suites.names() and settings.suite not in readers.names():
        load_items(settings)


def rejected_row(row: Rejected) -> dict[str, Any]:
    """A rejected row, ready for JSON."""
    return {"type": "rejected", **dataclasses.asdict(row)}


def settings_file(path: Path) -> RunSettings:
    """The settings of a finished or unfinished run folder."""
    return from_dict(json.loads(path.read_text(encoding="utf-8")))
