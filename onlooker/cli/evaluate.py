"""onlooker eval: put a suite's questions to a setting, and score the answers."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import emit, note, progress, show_table
from onlooker.core.errors import InputError
from onlooker.core.records import to_json

if TYPE_CHECKING:
    from onlooker.evals.replay import Outcome
    from onlooker.evals.score import Score

Suite = Literal["pocketworld", "needle"]


@app.command(name="eval")
def evaluate(
    suite: Annotated[Suite, typer.Argument(help="pocketworld: all categories; needle: half an hour back.")],
    limit: Annotated[int, typer.Option(help="Number of questions.", min=1, max=1_000_000)] = 200,
    seed: Annotated[int, typer.Option(help="First seed of the held-out clips.", min=0, max=10**9)] = 0,
    fps: options.Fps = 1.0,
    parallel: Annotated[int, typer.Option(help="Videos watched side by side.", min=1, max=1024)] = 8,
    out: Annotated[Path | None, typer.Option(help="Write every answer as JSON lines to this new file.")] = None,
    as_json: options.Json = False,
    model: options.Model = "pocket-aware",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    encoder: options.Encoder = options.DEFAULTS["encoder"],
    compressor: options.Compressor = options.DEFAULTS["compressor"],
    memory: options.Memory = options.DEFAULTS["memory"],
) -> None:
    """Watch a suite's videos, ask its questions on the way, print accuracy with 95 % intervals.

    Example: onlooker eval pocketworld --limit 200 --memory last_frames
    """
    if not 0 < fps <= 240:
        raise InputError("fps must lie above 0 and up to 240", given=str(fps), do="use 1 for one frame a second")
    methods = options.engine_settings(encoder, compressor, memory)
    with _new_file(out) as file:
        from onlooker.engine import Engine
        from onlooker.evals import suites
        from onlooker.evals.replay import replay

        engine = Engine.from_pretrained(model, dtype=dtype, device=device, **methods)
        items = getattr(suites, suite)(limit=limit, seed=seed)
        began = time.perf_counter()
        with progress(as_json, "questions") as bar:
            task = bar.add_task("asking", total=limit)

            def on_outcome(outcome: "Outcome") -> None:
                bar.advance(task)
                for record in (outcome.query, outcome.reply):
                    if file is not None and record is not None:
                        file.write(to_json(record) + "\n")

            outcomes = replay(engine, items, fps=fps, parallel=parallel, on_outcome=on_outcome)
    setting = {"suite": suite, "model": model, "encoder": encoder, "compressor": compressor, "memory": memory}
    setting |= {"seed": seed, "fps": fps, "seconds": time.perf_counter() - began}
    _report(outcomes, setting, as_json)
    if out is not None and not as_json:
        note(f"wrote {out}")


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


def _report(outcomes: list["Outcome"], setting: dict, as_json: bool) -> None:
    from onlooker.evals.score import by_task, score

    whole, parts = score(outcomes), by_task(outcomes)
    replies = [o.reply for o in outcomes if o.reply is not None]
    read = sum(r.meta["tokens_read"] for r in replies) / max(1, sum(r.meta["frames"] for r in replies))
    if as_json:
        tasks = {name: dataclasses.asdict(part) for name, part in parts.items()}
        emit(setting | {"tokens_read_per_frame": read, "overall": dataclasses.asdict(whole), "tasks": tasks})
        return
    rows = [_row(name, part) for name, part in [*parts.items(), ("all", whole)]]
    show_table(["category", "accuracy", "95 % interval", "answered"], rows, numbers=True)
    note(
        f"\n{setting['suite']} from seed {setting['seed']}, {setting['model']}: {read:.1f} tokens read per frame, "
        f"{setting['seconds']:.0f} s"
    )


def _row(name: str, part: "Score") -> list[str]:
    return [
        name,
        f"{part.accuracy:.1%}",
        f"{part.low:.1%} to {part.high:.1%}",
        f"{part.answered} of {part.asked}",
    ]
