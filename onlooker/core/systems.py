"""The published systems of the field, and what stands for each of them here."""

import json
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Literal

Aim = Literal["reproduces", "adapts", "borrows"]


@dataclass(frozen=True)
class System:
    """One published system: its idea, what becomes of it here, and what has to hold before it counts as working."""

    number: int
    key: str
    """The name by which a method or a benchmark declares it (`realises`) and a test proves it."""
    name: str
    idea: str
    here: str
    """What it becomes in this package, and what of it is changed or left out."""
    aim: Aim
    """reproduces: the published mechanism, its claim tested at our scale; adapts: changed for streams or small models;
    borrows: only the idea."""
    proofs: tuple[str, ...]
    """What must hold; each line needs a test or a measurement."""
    found: dict[int, str] = field(default_factory=dict)
    """What measurements gave, by line (from 1)."""
    waits: str = ""
    """What the lines that are open wait for."""


@dataclass(frozen=True)
class Status:
    """Where a system stands in this release."""

    declared: tuple[str, ...] = ()
    """Methods and benchmarks that declare it, as `room/name`."""
    proven: tuple[int, ...] = ()
    """Lines of `System.proofs` (from 1) that a test or a measurement stands behind."""
    failed: tuple[int, ...] = ()
    """Lines that were measured and do not hold."""

    def word(self, system: System) -> str:
        """`reproduces`, `adapts` or `borrows` when something declares it and every line is proven; else `failed` or
        `not yet`."""
        if self.declared and len(self.proven) == len(system.proofs):
            return system.aim
        return "failed" if self.failed else "not yet"


def listed() -> list[System]:
    """All systems, in their order."""
    text = files("onlooker.core").joinpath("systems.toml").read_text(encoding="utf-8")
    names = ("number", "key", "name", "idea", "here", "aim")
    rows = tomllib.loads(text)["system"]
    return [
        System(
            **{name: row[name] for name in names},
            proofs=tuple(row["proofs"]),
            found={one["line"]: one["found"] for one in row.get("measured", ())},
            waits=row.get("waits", ""),
        )
        for row in rows
    ]


def statuses() -> dict[str, Status]:
    """The status of every system by key, as `tools/systems.py` found it in code, tests and measurements."""
    text = files("onlooker.core").joinpath("systems_status.json").read_text(encoding="utf-8")
    return {key: Status(**{name: tuple(value) for name, value in row.items()}) for key, row in json.loads(text).items()}
