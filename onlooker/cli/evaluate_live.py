"""Suites about what is said unasked: `proactive` (`-things`, `-gaze`, `-comments`), `narration` and `hours`."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from onlooker.cli.output import emit, note, show_table
from onlooker.cli.progress import Working
from onlooker.core.errors import InputError

SUITES = ("proactive", "proactive-things", "proactive-gaze", "proactive-comments", "narration", "hours")
STREAMS = 24
"""Streams of a suite, unless said otherwise."""


@dataclass(frozen=True)
class LiveOptions:
    """What a suite is run with."""

    model: str
    device: str
    streams: int
    seed: int
    level: str
    fps: float
    seconds: float
    workers: int
    parallel: int
    """Streams that a process watches side by side (proactive)."""
    responses: tuple[str, ...]
    memory: str
    prompt: str
    """What narrators are asked; empty is what all models of the package know."""
    out: Path | None


def evaluate_live(suite: str, given: LiveOptions, as_json: bool, working: Working) -> None:
    """Run a suite and print its table; rows go to `out` as they come."""
    if suite == "hours":
        _hours(given, as_json, working)
        return
    from onlooker.evals.live import narration, proactive

    if given.prompt and suite.startswith("proactive"):
        raise InputError("this suite asks its own requests", given=f"--prompt {given.prompt}", do="leave it out")
    from onlooker.evals.live.workers import run_all

    seeds = range(given.seed, given.seed + given.streams)
    common = {"device": given.device, "seconds": given.seconds, "fps": given.fps, "level": given.level}
    if suite.startswith("proactive"):
        groups = [tuple(seeds[n : n + given.parallel]) for n in range(0, len(seeds), given.parallel)]
        jobs: Sequence[Any] = [proactive.Job(given.model, group, suite=suite, **common) for group in groups]
        do, table, number = proactive.do, proactive.table, len(seeds)
    else:
        names = given.responses or tuple(narration.NARRATORS)
        if unknown := sorted(set(names) - set(narration.NARRATORS)):
            known = "; ".join(narration.NARRATORS)
            raise InputError("there is no such narrator", given=", ".join(unknown), do=f"one of: {known}")
        common |= {"prompt": given.prompt or narration.NEWEST}
        jobs = [narration.Job(given.model, seed, name, **common) for seed in seeds for name in names]
        do, table, number = narration.do, narration.table, len(jobs)
    rows = []
    with _lines(given.out) as file, working.counting("watching", "streams", number) as step:
        for row in run_all(do, jobs, given.workers):
            rows.append(row)
            _write(file, {"model": given.model, "level": given.level, **row})
            step.advance()
    _show(suite, table(rows), given, as_json)


def _hours(given: LiveOptions, as_json: bool, working: Working) -> None:
    from onlooker.evals.live import hours

    if len(given.responses) > 1:
        raise InputError("hours are told by one policy", given=", ".join(given.responses), do="--response clock")
    policy = given.responses[0] if given.responses else "clock:period_s=4"
    job = hours.Job(given.model, given.seed, policy, given.memory, hours=given.seconds / 3600, device=given.device)
    if given.prompt:
        job = dataclasses.replace(job, prompt=given.prompt)
    rows = []
    with _lines(given.out) as file, working.counting("watching", "minutes", int(given.seconds // 60)) as step:
        for row in hours.minutes(job):
            rows.append(row)
            _write(file, dataclasses.asdict(job) | row)
            step.advance()
    if not rows:
        raise InputError("hours have minutes", given=f"{given.seconds} s", do="--seconds 7200")
    _show("hours", hours.quarters(rows, job), given, as_json)


def _show(suite: str, rows: list[dict[str, Any]], given: LiveOptions, as_json: bool) -> None:
    if as_json:
        about = dataclasses.asdict(given) | {"out": str(given.out or "")}
        emit({"suite": suite} | about | {"rows": rows})
        return
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if not name.startswith("minus_")]
    show_table(columns, [[_cell(row.get(name)) for name in columns] for row in rows], numbers=True)
    for row in rows:
        for name in [name for name in row if name.startswith("minus_")]:
            gap, who = row[name], f"{row['task']}, {row['budget']:.0f} an hour: {row['policy']}"
            if gap["p"] < 0.05:
                note(f"{who} {name.replace('_', ' ')}: {gap['gap']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _write(file: TextIO | None, row: dict[str, Any]) -> None:
    if file is not None:
        file.write(json.dumps(row) + "\n")
        file.flush()


@contextmanager
def _lines(path: Path | None) -> Iterator[TextIO | None]:
    """A new file of lines, which is there from the first. Raises `InputError` where it cannot be made."""
    if path is None:
        yield None
        return
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise InputError("a results file is never overwritten", given=str(path), do="name a new one") from error
    except OSError as error:
        given = f"{path} ({error.strerror})"
        raise InputError("the results cannot be written", given=given, do="choose another place") from error
    with file:
        yield file
