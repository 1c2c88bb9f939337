"""onlooker narrate: what happens, in words, while it happens."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import clock, emit, note, plain, warn
from onlooker.cli.progress import Working
from onlooker.cli.sources import Reading, hears_codec, open_source, stranger
from onlooker.core.errors import InputError, SourceError

FORMATS = (".vtt", ".srt")


@app.command()
@options.takes_methods(memory="streaming_vlm", compressor="identity")
def narrate(
    source: options.Source,
    prompt: Annotated[
        str, typer.Option(help="What the model is asked each time [dim](default: fits the model)[/].")
    ] = "",
    response: Annotated[
        str, typer.Option(help="When it may speak, such as [bold]sved[/] or [bold]clock:period_s=5[/].")
    ] = "clock:period_s=1,first_s=0",
    longest: Annotated[int, typer.Option(help="Most tokens of a text.", min=1, max=1024)] = 20,
    subtitles: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write subtitles there: a .vtt or .srt file.")
    ] = None,
    fps: options.Fps = 1.0,
    strict: options.Strict = False,
    stream: options.Stream = None,
    rate: options.Rate = None,
    live: options.Live = None,
    as_json: options.Json = False,
    progress: options.Progress = "auto",
    model: options.Model = "pocket-notes",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    pairs: options.Pairs = None,
    prefix: options.Prefix = None,
    methods: Any = None,
    device_budget: options.DeviceBudget = None,
    host_budget: options.HostBudget = None,
    kv: options.KV = "",
    disk: options.Disk = "",
    arithmetic: options.Arithmetic = "model",
) -> None:
    """Tell what happens in SOURCE, second by second, in memory that does not grow.

    Example: onlooker narrate synthetic:2 --subtitles told.vtt

    What was said stays in the memory longer than what was seen (streaming_vlm) and frames are read whole (identity)
    unless others are given. The same words are not said twice in a row. Without --prompt a built-in model is asked what
    it was taught, any other what happens now. With --json every text is one line, and so is the summary at the end.
    """
    if subtitles is not None and subtitles.suffix.lower() not in FORMATS:
        raise InputError("subtitles are a .vtt or .srt file", given=str(subtitles), do="--subtitles told.vtt")
    from onlooker.core import registry
    from onlooker.core.subtitles import Cue, as_srt, as_vtt

    settings = options.engine_settings(methods, device_budget, host_budget, kv, arithmetic, disk)
    policy, working = registry.make("response", response), Working(progress, as_json)
    with working.loading(model):
        from onlooker.engine import Engine
        from onlooker.engine.narrating import PROMPT
        from onlooker.models import COMMENTARY
    with open_source(source, fps, strict=strict, reading=Reading(stream, rate, live, hears_codec(methods))) as opened:
        strange = stranger(model, source)
        if not as_json:
            for line in strange:
                note(line)
        with working.loading(model):
            engine = Engine.from_pretrained(model, dtype=dtype, device=device, pairs=pairs, **settings)
        cues: list[Cue] = []
        with engine.open() as session:
            options.write_prefixes(session, prefix)
            narration, told = session.narrate(prompt or COMMENTARY.get(model, PROMPT), policy, longest=longest), None
            for frame in opened.frames:
                cues += narration.look(frame, session.push(frame))
                if narration.newest is not None and narration.newest != told:
                    told = narration.newest
                    _tell(*told, as_json)
            if session.time_s is None:
                raise SourceError("the source showed no frame", given=source, do="check it, and --fps")
            cues += narration.end(session.time_s + 1 / fps)
            stats = session.stats()
    if subtitles is not None:
        write = as_vtt if subtitles.suffix.lower() == ".vtt" else as_srt
        subtitles.write_text("".join(write(cues)), encoding="utf-8")
    if as_json:
        end = {"event": "end", "source": opened.name, "texts": len(cues), "notes": strange + opened.remarks()}
        emit(end | {"warnings": opened.warnings(), "stream": dataclasses.asdict(stats)})
        return
    note(f"{len(cues)} texts of {stats.frames} frames{f', in {subtitles}' if subtitles else ''}")
    for line in opened.warnings():
        warn(line)


def _tell(time_s: float, text: str, as_json: bool) -> None:
    if as_json:
        emit({"event": "text", "time_s": time_s, "text": text})
    else:
        print(f"[{clock(time_s)}] {plain(text)}", flush=True)
