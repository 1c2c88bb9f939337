"""The same bench on several devices at once, a process for each, and the sum."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from onlooker.cli.output import emit, note, show_table, sound
from onlooker.core.cores import threads_each
from onlooker.core.errors import InputError, OnlookerError

OWN = ("devices", "device", "as_json", "progress", "out", "picture", "help")
"""Options that the whole has, and not its parts."""


class WorkerFailed(OnlookerError):
    """A device's process ended without a result."""

    exit_code = 1


@dataclass(frozen=True)
class Place:
    """One process."""

    name: str
    device: str
    environment: dict[str, str]


def listed(text: str) -> list[Place]:
    """`0,1` are CUDA devices by number, each seen alone by its process; other names (cpu, cuda:1) are used as they are.
    Processes on CPUs share the cores evenly."""
    names = [part.strip() for part in text.split(",")]
    if not all(names) or len(names) > 64:
        raise InputError("devices are named by commas", given=repr(text), do="for example --devices 0,1")
    threads = str(threads_each(len(names)))
    places = []
    for name in names:
        if name.isdigit():
            places.append(Place(name, "cuda", {"CUDA_VISIBLE_DEVICES": name}))
        else:
            places.append(Place(name, name, {"OMP_NUM_THREADS": threads} if name == "cpu" else {}))
    return places


def run_on_each(places: Sequence[Place], context: typer.Context) -> dict[str, dict[str, Any]]:
    """Run the command that is being run on every place, all at once; what each found, by its name and number.

    Raises `WorkerFailed` when one of them ends without a result; the others are ended then.
    """
    arguments = _arguments(context)
    with tempfile.TemporaryDirectory() as folder:
        running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        try:
            for number, place in enumerate(places):
                found = Path(folder) / f"{number}.json"
                command = [sys.executable, "-m", "onlooker", *arguments, "--device", place.device, "--json"]
                command += ["--progress", "none", "--out", str(found)]
                with (Path(folder) / f"{number}.err").open("wb") as told:
                    process = subprocess.Popen(
                        command, env=os.environ | place.environment, stdout=subprocess.DEVNULL, stderr=told
                    )
                running[f"{number}: {place.name}"] = process, found
                note(f"searching on {place.name}")
            while any(process.poll() is None for process, _ in running.values()):
                _check(running)
                time.sleep(0.2)
            _check(running)
            return {name: json.loads(found.read_text(encoding="utf-8")) for name, (_, found) in running.items()}
        finally:
            for process, _ in running.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _check(running: dict[str, tuple[subprocess.Popen[bytes], Path]]) -> None:
    """Raise `WorkerFailed` for the first that has ended without a result."""
    for name, (process, found) in running.items():
        if process.poll():
            told = found.with_suffix(".err").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            given = f"{name} ended with {process.returncode}: {told[-1] if told else 'no word'}"[:300]
            raise WorkerFailed("a device's process failed", given=given, do="run it there alone (--device)")


def added(each: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The sum over devices, pipeline by pipeline: a limit is one only where every device has reached its own."""
    pipelines = {}
    for name in next(iter(each.values()))["pipelines"]:
        parts = [found["pipelines"][name] for found in each.values() if name in found["pipelines"]]
        pipelines[name] = {
            "streams": sum(part["streams"] for part in parts),
            "reached": len(parts) == len(each) and all(part["verdict"]["reached"] for part in parts),
            "each": [part["streams"] for part in parts],
            "why": [part["verdict"]["why"] for part in parts],
        }
    return {"bench": "streams", "devices": list(each), "pipelines": pipelines, "each": each}


def report(each: dict[str, dict[str, Any]], out: Path | None, picture: Path | None, as_json: bool) -> None:
    """Show the sum, and write it."""
    found = added(each)
    if out is not None:
        out.write_text(json.dumps(sound(found)) + "\n", encoding="utf-8")
    if picture is not None:
        from onlooker.cli.curve import draw

        curves = {f"{name}, {at}": part for at, one in each.items() for name, part in one["pipelines"].items()}
        picture.write_bytes(draw(curves, None))
    if as_json:
        emit(found)
        return
    rows = [
        [name, ("" if one["reached"] else "at least ") + str(one["streams"]), *map(str, one["each"])]
        for name, one in found["pipelines"].items()
    ]
    show_table(["pipeline", "streams in all", *found["devices"]], rows, numbers=True)
    for at, one in each.items():
        for name, part in one["pipelines"].items():
            note(f"{at}, {name}: {part['verdict']['told']}")


def _arguments(context: typer.Context) -> list[str]:
    """The command line of the command that is being run, less what concerns the whole."""
    words = context.command_path.split()[1:]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in OWN or value is None:
            continue
        if isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [parameter.opts[0], str(value)]
    return words
