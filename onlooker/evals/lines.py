"""A run as one line: what was asked of whom, what it took, and what each answer was worth, to compare runs later."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core import provenance
from onlooker.core.errors import InputError
from onlooker.evals.compare import budget, latency_ms
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.runs import Run
from onlooker.evals.score import worth


def start(path: Path, grid: Sequence[RunSettings]) -> list[RunSettings]:
    """The runs of a grid that are not in a file of lines yet, which is made if it is not there. Raises `InputError`
    where it cannot be made, or is a file of another kind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        empty = not path.stat().st_size
    except OSError as error:
        given = f"{path} ({error.strerror})"
        raise InputError("the lines cannot be written", given=given, do="name a new file") from error
    there = set() if empty else {_key(row["name"], row["settings"]) for row in read(path)[1]}
    return [one for one in grid if _key(one.label, _told(one)) not in there]


def _key(name: str, told: dict[str, Any]) -> str:
    """What tells runs of one file apart; where they ran, and how many videos side by side, does not."""
    return json.dumps([name, {k: v for k, v in told.items() if k not in ("device", "parallel")}], sort_keys=True)


def add(path: Path, run: Run) -> None:
    """Add a finished run; before the first, the questions that were put to it. Raises `InputError` where the runs of
    the file were asked others."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.query.id)
    about = {
        "type": "questions",
        "suite": run.settings.suite,
        "clips": run.settings.clips,
        "ids": [outcome.query.id for outcome in outcomes],
        "tasks": [outcome.query.task for outcome in outcomes],
        "videos": [outcome.query.video for outcome in outcomes],
    }
    first = not path.stat().st_size
    if not first and read(path)[0]["ids"] != about["ids"]:
        raise InputError("the runs of this file were asked other questions", given=str(path), do="name a new file")
    with path.open("a", encoding="utf-8") as file:
        if first:
            file.write(_dumped(about))
        file.write(_dumped(line(run)))


def _dumped(row: dict[str, Any]) -> str:
    """Without what a file of a hundred runs is mostly made of otherwise: spaces."""
    return json.dumps(row, separators=(",", ":")) + "\n"


def line(run: Run) -> dict[str, Any]:
    """One run; `worth` is that of each question, by the order of their ids (None where it takes a judge)."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.query.id)
    stats, took = [row["stats"] for row in run.videos], budget(run)
    seen, kept, frames = (sum(one.get(name, 0) for one in stats) for name in ("tokens_seen", "tokens_kept", "frames"))
    return {
        "type": "run",
        "name": run.settings.label,
        "settings": _told(run.settings),
        "share": kept / seen if seen else None,
        "frames_a_second": frames / max(1e-9, sum(one["seconds"] for one in stats)),
        "tokens_a_second": took.tokens_per_second,
        "seen_a_second": seen / max(1e-9, sum(one["seconds"] for one in stats)),
        "kept_a_second": kept / max(1e-9, sum(one["seconds"] for one in stats)),
        "vision_gflop_a_second": took.vision_gflop_per_second,
        "most_bytes": took.most_bytes,
        "compress_ms": latency_ms(run).get("compress", (None,))[0],
        "lane": run.lane,
        "failed": sum(bool(outcome.failure) for outcome in outcomes),
        "worth": [_short(worth(outcome)) for outcome in outcomes],
        "seconds": round(run.done["seconds"], 2) if run.done else None,
        "commit": run.environment["commit"],
        "versions": provenance.versions(),
        "card": run.environment["gpu"]
        if run.settings.device.startswith("cuda")
        else f"cpu ({run.environment['machine']})",
    }


def _short(value: float | None) -> float | None:
    """Most are 0 or 1."""
    return value if value is None else int(value) if value in (0, 1) else round(value, 4)


def _told(settings: RunSettings) -> dict[str, Any]:
    """What differs from the defaults."""
    plain = RunSettings().as_dict()
    return {key: value for key, value in settings.as_dict().items() if value != plain[key] and key != "name"}


def read(path: Path) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """The questions and the runs of a file. Raises `InputError` for a file of another kind."""
    try:
        rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError("the lines cannot be read", given=f"{path}: {error}", do="give a file of --lines") from error
    if not rows or rows[0].get("type") != "questions":
        raise InputError("these are no lines of runs", given=str(path), do="give a file that --lines wrote")
    return rows[0], rows[1:]
