"""Writes the status of the published systems from what methods declare, tests prove and measurements show."""

import ast
import dataclasses
import importlib
import json
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from onlooker.core import registry
from onlooker.core.kinds import KINDS
from onlooker.core.systems import Status, System, listed
from onlooker.evals import readers

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA = ROOT / "docs" / "systems.md", ROOT / "onlooker" / "core" / "systems_status.json"
HEAD = """# The published systems, and what stands here for each

Made by `python tools/systems.py --write` from what methods, benchmarks and modules declare (`realises`), what tests
prove (`@pytest.mark.proves`) and what measurements show (`benchmarks/results/`); `make check` fails when it is stale.
On the command line: `onlooker systems`, and `onlooker systems rekv` for one of them.

Each of the 64 systems has lines that have to hold before it counts as working here. A status says how close it is:

- **reproduces**: the published mechanism as specified, checked against an independent derivation, its claim tested at
  our scale. **adapts**: changed for streams or for a small model. **borrows**: only the idea is used.
- **not yet**: nothing here stands for it, or a line of its proof is open; what it waits for stands beside it.
  **failed**: a line was measured and does not hold at our scale, that of small models trained without the method
  unless a line says otherwise; what was found stands behind the line. A method named there can still be used.

Signs: **+** a test proves the line or a measurement shows it; **x** it was measured and does not hold; **o** it is
open; in brackets what was measured. Gaps are in points of accuracy, with their 95 % interval. Words of the lines: *by
CI*, the interval leaves zero out; *equal tokens*, as many are read for an answer; *clutter*, level L3 of Pocket World;
*F1*, alerts that came where they should; *R@0.5*, spans found that overlap the true one by half; *SRCC*, rank
correlation; *ATE*, how far a camera's way is off.

Ten systems make video: StreamingT2V, MotionStream, StreamDiT, GPT4Video, StreamDiffusionV2, Context Forcing,
EchoTorrent, Anchor Forcing, VideoDirectorGPT and Deep Forcing. This package watches video and makes none, so lines
about generated pictures stay open (*L drop*, pictures that get worse over time; *MR*, motion made for motion asked
for; *EPE*, pixels off a track; *PFD*, a distance to real pictures; *Return*, a thing that comes back as it was). What
carries over to video that comes in has a line of its own where it can be measured ("input side").

"""


def declared() -> dict[str, list[str]]:
    """What stands for each system: `room/name` by key."""
    found = defaultdict(list)
    for kind, room in ((kind.name, kind.folder) for kind in KINDS.values()):
        for name in registry.names(kind):
            for key in registry.method_class(kind, name).realises:
                found[key].append(f"{room}/{name}")
    for name in readers.names():
        for key in importlib.import_module(f"onlooker.evals.readers.{name}").BENCHMARK.realises:
            found[key].append(f"evals/{name}")
    for folder, base in ((ROOT / "onlooker", ROOT / "onlooker"), (ROOT / "benchmarks", ROOT)):
        for path in sorted(folder.rglob("*.py")):  # what is neither a method nor a benchmark says so by itself
            for key in _realises(ast.parse(path.read_text(encoding="utf-8"))):
                found[key].append(path.relative_to(base).with_suffix("").as_posix())
    return found


def _realises(tree: ast.Module) -> tuple[str, ...]:
    """What a module says at its top that it realises."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["REALISES"]:
            return ast.literal_eval(node.value)
    return ()


def proven() -> dict[str, set[int]]:
    """Lines that tests prove, by key: every `@pytest.mark.proves(key, line, ...)` under tests/."""
    found = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for call in _marks(ast.parse(path.read_text(encoding="utf-8"))):
            key, *lines = [ast.literal_eval(argument) for argument in call.args]
            found[key].update(lines)
    return found


def _marks(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "proves":
            yield node


def measured() -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Lines that measurements show to hold, and not to hold, by key. The rows must be there."""
    text = (ROOT / "onlooker" / "core" / "systems.toml").read_text(encoding="utf-8")
    holds, fails = defaultdict(set), defaultdict(set)
    for row in tomllib.loads(text)["system"]:
        for one in row.get("measured", []):
            if not (ROOT / one["rows"]).is_file():
                sys.exit(f"systems.toml: {row['key']} names rows that are not there: {one['rows']}")
            (holds if one["holds"] else fails)[row["key"]].add(one["line"])
    return holds, fails


def found(systems: list[System]) -> dict[str, Status]:
    """Where every system stands. Ends the program on a key or a line that there is not."""
    here, tests, (holds, fails) = declared(), proven(), measured()
    lines = {system.key: set(range(1, len(system.proofs) + 1)) for system in systems}
    for source in (here, tests, holds, fails):
        if unknown := sorted(set(source) - set(lines)):
            sys.exit(f"there is no system of this key in systems.toml: {', '.join(unknown)}")
    for source in (tests, holds, fails):
        for key, some in source.items():
            if not some <= lines[key]:
                sys.exit(f"{key} has no proof lines {sorted(some - lines[key])}")
    return {
        key: Status(
            tuple(sorted(here[key])), tuple(sorted((tests[key] | holds[key]) - fails[key])), tuple(sorted(fails[key]))
        )
        for key in lines
    }


def page(systems: list[System], status: dict[str, Status]) -> str:
    """The table and the counts."""
    words = [status[system.key].word(system) for system in systems]
    kinds = ("reproduces", "adapts", "borrows", "failed", "not yet")
    counts = ", ".join(f"{words.count(kind)} {kind}" for kind in kinds)
    named = [f"- {kind}: {', '.join(_names(systems, words, kind))}" for kind in kinds if kind in words]
    rows = [
        f"Of {len(systems)}: {counts}.",
        "",
        *named,
        "",
        "| # | system | idea | here | status | proof |",
        "|---|---|---|---|---|---|",
    ]
    for system, word in zip(systems, words, strict=True):
        one = status[system.key]
        names = ", ".join(f"`{name}`" for name in one.declared) or "nothing yet"
        proof = "<br>".join(_told(system, number, line, one) for number, line in enumerate(system.proofs, 1))
        goal = "" if word == system.aim else f" (aim: {system.aim})"
        goal += f". Waits for {system.waits}" if word == "not yet" and system.waits else ""
        cells = (str(system.number), system.name, system.idea, names, f"{word}{goal}", proof)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(rows) + "\n"


def _names(systems: list[System], words: list[str], kind: str) -> list[str]:
    return [f"{system.name} ({system.number})" for system, word in zip(systems, words, strict=True) if word == kind]


def _told(system: System, number: int, line: str, status: Status) -> str:
    found = system.found.get(number)
    return f"{_sign(number, status)} {line}" + (f" [{found}]" if found else "")


def _sign(number: int, status: Status) -> str:
    return "+" if number in status.proven else "x" if number in status.failed else "o"


def main() -> None:
    """`--write` brings page and data up to date; otherwise fail when one of them is stale."""
    systems = listed()
    status = found(systems)
    rows = ",\n".join(f" {json.dumps(key)}: {json.dumps(dataclasses.asdict(one))}" for key, one in status.items())
    texts = {PAGE: page(systems, status), DATA: f"{{\n{rows}\n}}\n"}
    for path, text in texts.items():
        if "--write" in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run make format")
    print(f"{len(systems)} systems, status up to date")


if __name__ == "__main__":
    main()
