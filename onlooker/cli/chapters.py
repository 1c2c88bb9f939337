"""onlooker chapters: where something new begins, and what each part is about."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import clock, emit, note, plain, warn
from onlooker.cli.progress import Working
from onlooker.cli.sources import Reading, open_source, read_ahead, stranger
from onlooker.core.errors import InputError, SourceError

FORMATS = (".vtt", ".srt", ".txt")


@app.command()
@options.takes_methods()
def chapters(
    source: options.Source,
    prompt: Annotated[
        str, typer.Option(help="What the model is asked for a title [dim](default: fits the model)[/].")
    ] = "",
    response: Annotated[
        str, typer.Option(help="What begins a chapter, such as [bold]drop_ratio[/] or [bold]clock:period_s=60[/].")
    ] = "",
    least: Annotated[float, typer.Option(help="Least seconds of a chapter.", min=0)] = 15.0,
    longest: Annotated[int, typer.Option(help="Most tokens of a title.", min=1, max=1024)] = 16,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write them there: .vtt (a chapter track), .srt, or .txt (0:00 lines)."),
    ] = None,
    fps: options.Fps = 1.0,
    strict: options.Strict = False,
    stream: options.Stream = None,
    rate: options.Rate = None,
    live: options.Live = None,
    as_json: options.Json = False,
    progress: options.Progress = "auto",
    model: options.Model = "pocket-aware",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    pairs: options.Pairs = None,
    methods: Any = None,
    device_budget: options.DeviceBudget = None,
    host_budget: options.HostBudget = None,
    kv: options.KV = "",
    disk: options.Disk = "",
    arithmetic: options.Arithmetic = "model",
) -> None:
    """Cut SOURCE into chapters while it is watched, and give each a title.

    Example: onlooker chapters synthetic:2:120 --out chapters.vtt

    A chapter begins where a frame is unlike what was seen (or where --response says), and its title is what the model
    answers about that part alone. With --json every chapter is one line, and so is the summary at the end.
    """
    if out is not None and out.suffix.lower() not in FORMATS:
        raise InputError("chapters are a .vtt, .srt or .txt file", given=str(out), do="--out chapters.vtt")
    from onlooker.core import registry
    from onlooker.core.subtitles import Cue, as_srt, as_vtt

    settings = options.engine_settings(methods, device_budget, host_budget, kv, arithmetic, disk)
    policy = registry.make("response", response) if response else None
    working = Working(progress, as_json)
    with working.loading(model):
        from onlooker.engine import Engine
        from onlooker.engine.chaptering import TITLE, Chapters
        from onlooker.models import BUILT_IN, NEWEST
    with open_source(source, fps, strict=strict, reading=Reading(stream, rate, live, workers=0)) as opened:
        strange = stranger(model, source)
        for line in () if as_json else strange:
            note(line)
        with working.loading(model):
            engine = Engine.from_pretrained(model, dtype=dtype, device=device, pairs=pairs, **settings)
        found: list[Cue] = []
        with engine.open() as session, read_ahead(opened, engine.resize) as frames:
            ask = prompt or (NEWEST if model in BUILT_IN else TITLE)
            cutting = Chapters(engine, session, ask, policy, least_s=least, longest=longest)
            for frame, taken in session.push_many(frames):
                found += _tell(cutting.look(frame, taken), as_json)
            if session.time_s is None:
                raise SourceError("the source showed no frame", given=source, do="check it, and --fps")
            found += _tell(cutting.end(session.time_s + 1 / fps), as_json)
            stats = session.stats()
    if out is not None:
        kind = out.suffix.lower()
        lines = as_vtt(found) if kind == ".vtt" else as_srt(found) if kind == ".srt" else map(_line, found)
        out.write_text("".join(lines), encoding="utf-8")
    if as_json:
        end = {"event": "end", "source": opened.name, "chapters": len(found), "notes": strange + opened.remarks()}
        emit(end | {"warnings": opened.warnings(), "stream": dataclasses.asdict(stats)})
        return
    note(f"{len(found)} chapters of {stats.frames} frames{f', in {out}' if out else ''}")
    for line in opened.warnings():
        warn(line)


def _line(cue: Any) -> str:
    """As video sites read them in a description."""
    return f"{clock(cue.start_s)} {cue.text}\n"


def _tell(cues: list[Any], as_json: bool) -> list[Any]:
    for cue in cues:
        if as_json:
            emit({"event": "chapter", "start_s": cue.start_s, "end_s": cue.end_s, "title": cue.text})
        else:
            print(f"[{clock(cue.start_s)}] {plain(cue.text)}", flush=True)
    return cues
