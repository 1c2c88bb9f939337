"""onlooker eval: put a suite's questions to a setting, and score the answers."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.ask import progress
from onlooker.core.errors import InputError
from onlooker.core.records import to_json

Suite = Literal["pocketworld", "needle"]


@app.command(name="eval")
def evaluate(
    suite: Annotated[Suite, typer.Argument(help="pocketworld: all categories; needle: half an hour back.")],
    model: options.Model = "pocket-aware",
    encoder: options.Encoder = options.DEFAULTS["encoder"],
    compressor: options.Compressor = options.DEFAULTS["compressor"],
    memory: options.Memory = options.DEFAULTS["memory"],
    limit: Annotated[int, typer.Option(help="Number of questions.")] = 200,
    seed: Annotated[int, typer.Option(help="First seed of the held-out clips.")] = 0,
    fps: options.Fps = 1.0,
    parallel: Annotated[int, typer.Option(help="Videos watched side by side in one engine.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Write every answer as JSON lines to this new file.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Watch the suite's videos, ask its questions on the way, print accuracy by category with 95 % intervals."""
    if out is not None and out.exists():
        raise InputError("a results file is never overwritten", given=str(out), do="name a new one")
    from onlooker.engine import Engine
    from onlooker.evals import suites
    from onlooker.evals.replay import Outcome, replay
    from onlooker.evals.score import by_task, score

    engine = Engine.from_pretrained(
        model, dtype=dtype, device=device, encoder=encoder, compressor=compressor, memory=memory
    )
    items = getattr(suites, suite)(limit=limit, seed=seed)
    began = time.perf_counter()
    with progress(as_json) as bar:
        task = bar.add_task("asking", total=limit)

        def note(outcome: Outcome) -> None:
            bar.advance(task)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(to_json(outcome.query) + "\n")
                    if outcome.reply is not None:
                        file.write(to_json(outcome.reply) + "\n")

        outcomes = replay(engine, items, fps=fps, parallel=parallel, on_outcome=note)
    whole, parts = score(outcomes), by_task(outcomes)
    spent = time.perf_counter() - began
    replies = [o.reply for o in outcomes if o.reply is not None]
    read = sum(r.meta["tokens_read"] for r in replies) / max(1, sum(r.meta["frames"] for r in replies))
    if as_json:
        rows = {name: dataclasses.asdict(s) for name, s in parts.items()}
        shown = {"suite": suite, "model": model, "encoder": encoder, "compressor": compressor, "memory": memory}
        shown |= {"seed": seed, "fps": fps, "tokens_read_per_frame": read, "seconds": spent}
        print(json.dumps(shown | {"overall": dataclasses.asdict(whole), "tasks": rows}))
        return
    table = Table("category", "accuracy", "95 % interval", "answered", box=None, pad_edge=False)
    for name, part in [*parts.items(), ("all", whole)]:
        table.add_row(
            name, f"{part.accuracy:.1%}", f"{part.low:.1%} to {part.high:.1%}", f"{part.answered} of {part.asked}"
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{read:.1f} tokens read per frame; {spent:.0f} s; {suite} from seed {seed}, {model}")
