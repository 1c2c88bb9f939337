"""onlooker eval: put a suite's questions to one setting or a grid of them, and score the answers."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.evaluate_live import STREAMS, SUITES, LiveOptions, evaluate_live
from onlooker.cli.output import emit, note, show_table, warn
from onlooker.cli.progress import Working
from onlooker.core.errors import InputError
from onlooker.core.kinds import KINDS

if TYPE_CHECKING:
    from onlooker.evals.run_settings import RunSettings
    from onlooker.evals.runs import Run
    from onlooker.evals.score import Score

RUN, FILES, LIVE = "Run", "Published benchmarks", "What is said unasked"
Suite = Annotated[
    str,
    typer.Argument(
        metavar="SUITE",
        help="pocketworld (or -long, -temporal, -needles, -chains, -stream, -stories, -gaze, -transport), "
        "proactive (or -things, -gaze, -comments), narration, hours, or a benchmark.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        help="Number of questions [dim](default: 200)[/]; of proactive and narration, of streams [dim](24)[/].",
        min=1,
        max=1_000_000,
        show_default=False,
    ),
]
Narrators = Annotated[
    list[str] | None,
    typer.Option("--response", help="narration: narrators to compare; hours: the policy.", rich_help_panel=LIVE),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        "--seconds", help="Length of a stream (180; hours: 7200).", min=60, rich_help_panel=LIVE, show_default=False
    ),
]
Prompt = Annotated[
    str, typer.Option("--prompt", help="narration, hours: what the model is asked each time.", rich_help_panel=LIVE)
]
Side = Annotated[
    str, typer.Option(help="Text beside the video that goes into memory as it comes: comment, speech, asr, with +.")
]
Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        help="Many runs: a .toml file, controls, stc, compressors (or compressors:5,15: at so many percent), or "
        "key=a|b; key=c|d. Needs --out.",
        metavar="GRID",
    ),
]
Lines = Annotated[
    Path | None,
    typer.Option(
        help="A .jsonl file: a line for each run of a grid as it ends; runs that have one are not done again.",
        rich_help_panel=RUN,
    ),
]


@app.command(name="eval")
@options.takes_methods()
def evaluate(
    suite: Suite,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="First seed of the held-out clips.", min=0, max=10**9)] = 0,
    seeds: Annotated[
        str, typer.Option(metavar="sealed:NAME", help="Derive the clips from a name instead, to open them once.")
    ] = "",
    level: Annotated[str, typer.Option(help="L0, or L1 to L4: a harder Pocket World (pocketworld, -stories).")] = "L0",
    fps: options.Fps = 1.0,
    parallel: Annotated[int, typer.Option(help="Videos watched side by side.", min=1, max=1024)] = 8,
    pace: Annotated[str, typer.Option(help="max, or realtime (then lag counts).", rich_help_panel=RUN)] = "max",
    control: Annotated[
        str, typer.Option(help="Test the harness instead of a model: oracle:0.1, yes, guess:0.", rich_help_panel=RUN)
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="A new .jsonl file for the answers, or a folder for whole runs.")
    ] = None,
    grid: Grid = None,
    lines: Lines = None,
    workers: Annotated[int, typer.Option(help="Processes for a grid.", min=1, max=256, rich_help_panel=RUN)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs for a grid: cuda:0 and so on.", min=0, rich_help_panel=RUN)] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Spread a grid with Ray.", rich_help_panel=RUN)] = False,
    annotations: Annotated[Path | None, typer.Option(help="Its annotation file.", rich_help_panel=FILES)] = None,
    videos: Annotated[Path | None, typer.Option(help="The folder of its videos.", rich_help_panel=FILES)] = None,
    response: Narrators = None,
    seconds: Seconds = None,
    prompt: Prompt = "",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
    model: options.Model = "",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    pairs: options.Pairs = None,
    prefix: options.Prefix = None,
    kv: options.KV = "",
    arithmetic: options.Arithmetic = "model",
    side: Side = "",
    methods: Any = None,
) -> None:
    """Watch a suite's videos, ask its questions on the way, print accuracy with 95 % intervals.

    Example: onlooker eval pocketworld --limit 200 --memory last_frames

    Without --model: pocket-aware, and above L0 pocket-stc, which learnt all levels.
    """
    model = model or ("pocket-aware" if level == "L0" else "pocket-stc")
    if suite in SUITES:
        _live(suite, response, seconds, methods, limit, as_json, Working(progress, as_json), {
            "model": model, "device": device, "seed": seed, "level": level, "fps": fps, "workers": workers, "out": out,
            "prompt": prompt, "parallel": parallel,
        })  # fmt: skip
        return
    if response or seconds or prompt:
        do = f"one of: {', '.join(SUITES)}"
        raise InputError("this suite has no policies, lengths or prompts", given=suite, do=do)
    from onlooker.evals.run_settings import check, from_dict

    values: dict[str, Any] = {
        "suite": suite, "limit": limit or 200, "seed": seed, "seeds": seeds, "level": level, "fps": fps,
        "parallel": parallel, "pace": pace, "control": control, "annotations": str(annotations or ""),
        "videos": str(videos or ""), "model": model, "device": device, "dtype": dtype, "pairs": pairs, "kv": kv,
        "arithmetic": arithmetic, "side": side, "prefix": "+".join(prefix or ()), **methods,
    }  # fmt: skip
    if grid is not None:
        if out is None:
            raise InputError("a grid needs a place for its runs", given="--grid without --out", do="--out runs/")
        _grid(grid, values, out, lines, (workers, gpus, ray), as_json, Working(progress, as_json))
        return
    if lines is not None:
        raise InputError("lines are those of a grid", given="--lines without --grid", do="--out FILE.jsonl")
    settings = from_dict(values)
    check(settings)
    _one(settings, out, as_json, Working(progress, as_json))


def _live(
    suite: str,
    response: list[str] | None,
    seconds: float | None,
    methods: dict[str, str],
    limit: int | None,
    as_json: bool,
    working: Working,
    given: dict[str, Any],
) -> None:
    """A suite about what is said unasked, which has an engine of its own."""
    from onlooker.evals.live.hours import STREAMING

    own = {name: said for name, said in methods.items() if said != KINDS[name].default}
    memory = own.pop("memory", STREAMING) if suite == "hours" else STREAMING
    if own:
        named = ", ".join(f"{name}={said}" for name, said in own.items())
        raise InputError("this suite has methods of its own", given=named, do="leave them out (hours takes --memory)")
    length = seconds or (7200.0 if suite == "hours" else 180.0)
    chosen = LiveOptions(
        streams=limit or STREAMS, seconds=length, responses=tuple(response or ()), memory=memory, **given
    )
    evaluate_live(suite, chosen, as_json, working)


def _one(settings: "RunSettings", out: Path | None, as_json: bool, working: Working) -> None:
    from onlooker.evals.runs import execute, folder_of

    lines = out if out is not None and out.suffix == ".jsonl" else None
    with _new_file(lines) as file, tempfile.TemporaryDirectory() as scratch:
        folder = folder_of(settings, Path(scratch) if out is None or lines else out)
        with working.counting("asking", "questions", settings.limit) as step:
            run = execute(settings, folder, on_outcome=lambda _: step.advance())
        if file is not None:
            _write_records(file, run)
        _show(run, as_json)
    if out is not None and not as_json:
        note(f"wrote {lines or folder}")


def _grid(
    spec: str, values: dict[str, Any], out: Path, lines: Path | None, spread: tuple[int, int, bool], as_json: bool,
    working: Working,
) -> None:  # fmt: skip
    from onlooker.evals.compare import compare
    from onlooker.evals.compressors import shares_of
    from onlooker.evals.grid import SHARED
    from onlooker.evals.lines import add, start
    from onlooker.evals.report.table import markdown, row_dict
    from onlooker.evals.runs import open_run
    from onlooker.evals.workers import Finished, results, run_grid

    workers, gpus, ray = spread
    grid = _runs(spec, values, out, workers, working)
    if lines is not None:
        left = start(lines, grid)
        if not left:
            note(f"all {len(grid)} runs have a line in {lines}")
            if as_json:
                emit([])
            return
        grid = left

    def on_finished(one: Finished) -> None:
        if lines is not None and not one.failure:
            add(lines, open_run(one.folder))

    total = sum(settings.limit for settings in grid)
    with working.counting(f"{len(grid)} runs", "questions", total) as step:
        finished = run_grid(
            grid, out, workers=workers, gpus=gpus, ray=ray, shared=shares_of(spec) is not None or spec in SHARED,
            on_progress=step.to, on_finished=on_finished,
        )  # fmt: skip
    for one in finished:
        if one.failure:
            warn(f"{one.settings.label}: {one.failure}")
    runs = results(finished)
    if not runs:
        raise InputError("no run of the grid came to its end", given=str(out), do="see the warnings above")
    rows = compare(runs)
    if as_json:
        emit([row_dict(row) for row in rows])
    else:
        print(markdown(rows, out))
        note(f"{len(runs)} of {len(grid)} runs in {out}; next: onlooker report {out}/*")


def _runs(spec: str, values: dict[str, Any], out: Path, workers: int, working: Working) -> list["RunSettings"]:
    from onlooker.evals import compressors
    from onlooker.evals.grid import expand

    shares = compressors.shares_of(spec)
    if shares is None:
        return expand(spec, values)
    with working.counting("finding what keeps each budget", "settings", None) as step:
        grid = compressors.runs(values, out, workers, lambda done, of: step.to(done, f"budgets, of {of}"), shares)
    for one in compressors.misfits(out):
        why = one.failure or f"keeps {one.measured:.1%} at the nearest"
        warn(f"{one.name} is left out at {one.share:.0%}: {why}")
    return grid


def _write_records(file: TextIO, run: "Run") -> None:
    from onlooker.core.records import to_json

    for outcome in run.outcomes:
        for record in (outcome.query, *outcome.replies):
            file.write(to_json(record) + "\n")


@contextmanager
def _new_file(path: Path | None) -> Iterator[TextIO | None]:
    """A file that is there when all went well and not otherwise. Raises `InputError` where it cannot be made."""
    if path is None:
        yield None
        return
    if path.exists():
        raise InputError("a results file is never overwritten", given=str(path), do="name a new one")
    partial = path.with_name(f".{path.name}.partial")
    try:
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        given = f"{path} ({error.strerror})"
        raise InputError("the results cannot be written", given=given, do="choose another place") from error
    try:
        with file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _show(run: "Run", as_json: bool) -> None:
    from onlooker.evals.compare import budget
    from onlooker.evals.score import by_task, official, score
    from onlooker.evals.timing import timing

    outcomes, settings = run.outcomes, run.settings
    whole, parts = score(outcomes, rejected=run.rejected), by_task(outcomes)
    took = budget(run)
    frames = sum(row["stats"].get("frames", 0) for row in run.videos)
    read = sum(row["stats"].get("tokens_read", 0) for row in run.videos) / max(1, frames)
    spoke = timing(outcomes, {row["video"].id: row["video"] for row in run.videos})
    assert run.done is not None, "the run was just finished"
    if as_json:
        found = {
            "clips": settings.clips, "tokens_read_per_frame": read, "budget": dataclasses.asdict(took),
            "seconds": run.done["seconds"], "lane": run.lane,
            "rejected": run.rejected, "overall": dataclasses.asdict(whole) | {"coverage": whole.coverage},
            "official": official(outcomes), "proactive": dataclasses.asdict(spoke) if spoke else None,
            "tasks": {name: dataclasses.asdict(part) for name, part in parts.items()},
        }  # fmt: skip
        emit(settings.as_dict() | found)
        return
    rows = [_row(name, part) for name, part in [*parts.items(), ("all", whole)]]
    macro = [f"{whole.macro:.1%}", f"{whole.macro_low:.1%} to {whole.macro_high:.1%}", f"{len(parts)} categories"]
    show_table(["category", "accuracy", "95 % interval", "answered"], [*rows, ["macro", *macro]], numbers=True)
    for name, value in official(outcomes).items():
        print(f"{name} by the published scorer: {value:.1%}")
    if spoke:
        alarms = "none measured" if spoke.alarms_per_quiet_hour is None else f"{spoke.alarms_per_quiet_hour:.0f}"
        note(f"speaking unasked: F1 {spoke.f1:.2f}, false alarms per quiet hour {alarms}")
    failures = sorted({outcome.failure for outcome in outcomes if outcome.failure})
    if failures or run.rejected:
        first = f" (first: {failures[0]})" if failures else ""
        warn(
            f"coverage {whole.coverage:.1%}: {whole.failed} questions failed and count as wrong "
            f"({whole.answered_only:.1%} of the answered are right), {run.rejected} could not be put{first}"
        )
    if run.lane == "looks ahead":
        warn(f"this system looks into the future: {json.dumps(run.done['violations'][0])}")
    note(
        f"\n{settings.suite}, {settings.clips}, {settings.control or settings.model}: {read:.1f} tokens read "
        f"per frame, {took.tokens_per_second:.1f} per second of video, {run.done['seconds']:.0f} s, lane: {run.lane}"
    )


def _row(name: str, part: "Score") -> list[str]:
    return [
        name,
        f"{part.accuracy:.1%}",
        f"{part.low:.1%} to {part.high:.1%}",
        f"{part.answered} of {part.asked}",
    ]
