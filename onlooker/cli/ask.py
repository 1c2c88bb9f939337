"""onlooker ask: watch a source up to a moment, then answer one question about it."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from onlooker.cli import options
from onlooker.cli.app import app, notes
from onlooker.cli.sources import open_source
from onlooker.core.errors import InputError
from onlooker.core.events import Answer, SessionStats

PICTURES = (".png", ".mp4")


@app.command()
def ask(
    source: options.Source,
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    at: Annotated[
        float | None, typer.Option(help="Ask when the stream is this old (seconds); default: at its end.")
    ] = None,
    since: Annotated[float | None, typer.Option(help="Look at nothing earlier than this (seconds).")] = None,
    model: options.Model = "pocket-aware",
    encoder: options.Encoder = options.DEFAULTS["encoder"],
    compressor: options.Compressor = options.DEFAULTS["compressor"],
    memory: options.Memory = options.DEFAULTS["memory"],
    fps: options.Fps = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above 0 the answer is sampled.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Draw what was recomputed and kept on the frames: a .png or .mp4 file.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Watch SOURCE and answer QUESTION about it.

    Example: onlooker ask clip.mp4 "Which shape left first?" --at 20 --overlay seen.png
    """
    check_overlay(overlay)
    if at is not None and at < 0:
        raise InputError("--at is a time in seconds since the start", given=str(at), do="use 0 or more")
    from onlooker.engine import Engine
    from onlooker.video.overlay import OverlayWriter

    with open_source(source, fps, at) as opened:
        engine = Engine.from_pretrained(
            model, dtype=dtype, device=device, encoder=encoder, compressor=compressor, memory=memory
        )
        writer = OverlayWriter(overlay, fps) if overlay else None
        try:
            with engine.open(trace=writer is not None) as session, progress(as_json) as bar:
                end = at if at is not None else opened.duration_s
                task = bar.add_task("watching", total=end)
                for frame in opened.frames:
                    session.push(frame)
                    if writer and session.trace:
                        writer.add(frame, session.trace.recomputed, session.trace.kept)
                    bar.update(task, completed=frame.time_s)
                bar.update(task, completed=end or session.time_s or 0.0)
                answer = session.ask(
                    question, since=since, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
                )
                stats = session.stats()
        finally:
            if writer:
                writer.close()
        warnings = opened.warnings()
    if as_json:
        print(json.dumps(as_dict(answer, stats) | {"source": source, "warnings": warnings}))
        return
    print(answer.text)
    for line in explain(answer, stats):
        notes.print(line, style="dim")
    if overlay:
        notes.print(f"wrote {overlay}", style="dim")
    for line in warnings:
        notes.print(f"warning: {line}", style="yellow")


def check_overlay(path: Path | None) -> None:
    """Raise `InputError` unless a picture or a film can be written there; said before any work is done."""
    if path is None:
        return
    if path.suffix not in PICTURES:
        raise InputError("an overlay is a .png or an .mp4 file", given=str(path), do="name it seen.png or seen.mp4")
    if not path.parent.is_dir():
        raise InputError("the overlay's folder does not exist", given=str(path.parent), do="make it first")


def progress(quiet: bool) -> Progress:
    """A bar over stream time, on the error stream, silent for programs."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} s of video"),
        TimeElapsedColumn(),
        console=notes,
        transient=True,
        disable=quiet or not notes.is_terminal,
    )


def clock(seconds: float) -> str:
    """Seconds as people read them: 0:07, 12:30, 1:02:03."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def explain(answer: Answer, stats: SessionStats) -> list[str]:
    """What an answer rests on and what it took, in two or three lines."""
    lines = []
    if answer.citations:
        cited = ", ".join(
            f"{clock(c.start_s)}-{clock(c.end_s)}" if c.end_s > c.start_s else clock(c.start_s)
            for c in answer.citations[:4]
        )
        lines.append(f"looked mostly at {cited} (asked at {clock(answer.time_s)})")
    kept = stats.tokens_kept / max(1, stats.tokens_seen)
    held = sum(stats.memory_bytes.values()) / 2**20
    lines.append(
        f"{stats.frames} frames, {stats.tokens_kept} of {stats.tokens_seen} tokens kept ({kept:.0%}), "
        f"{stats.refreshed_frames} frames encoded whole, memory {held:.1f} MiB, "
        f"first token after {answer.timing.first_token_s * 1000:.0f} ms"
    )
    return lines


def as_dict(answer: Answer, stats: SessionStats) -> dict[str, Any]:
    """An answer and the stream it came from, for programs."""
    return {"answer": answer.text} | dataclasses.asdict(answer) | {"stream": dataclasses.asdict(stats)}
