"""onlooker ask: watch a source up to a moment, then answer one question about it."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import clock, emit, note, plain, size_text, warn
from onlooker.cli.progress import Working
from onlooker.cli.sources import Reading, hears_codec, open_source, read_ahead, stranger
from onlooker.core.errors import InputError, SourceError
from onlooker.core.events import Answer, SessionStats

ANSWER = "Answer"


At = Annotated[float | None, typer.Option(help="Ask when the stream is this old, in seconds (default: at its end).")]
Since = Annotated[float | None, typer.Option(help="Look at nothing earlier than this, in seconds.")]
Overlay = Annotated[
    Path | None, typer.Option(help="Draw what was recomputed and kept: a .png of the last frames, or an .mp4.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 is greedy; above 0 the answer is sampled (default: the model's own settings).", rich_help_panel=ANSWER
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Makes a sampled answer repeatable.", min=0, max=2**63 - 1, rich_help_panel=ANSWER)
]


@app.command()
@options.takes_methods()
def ask(
    source: options.Source,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.", show_default=False)],
    at: At = None,
    since: Since = None,
    fps: options.Fps = 1.0,
    overlay: Overlay = None,
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
    prefix: options.Prefix = None,
    methods: Any = None,
    device_budget: options.DeviceBudget = None,
    host_budget: options.HostBudget = None,
    kv: options.KV = "",
    disk: options.Disk = "",
    arithmetic: options.Arithmetic = "model",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", rich_help_panel=ANSWER)] = 64,
    temperature: Temperature = None,
    seed: Seed = None,
) -> None:
    """Watch SOURCE and answer QUESTION about it.

    Example: onlooker ask synthetic:4 "which shape left first?" --at 20 --overlay seen.png

    A damaged source is answered from what decodes, with a warning (exit code 4 with --strict).
    """
    options.check_words(question)
    options.check_seconds("--at", at)
    options.check_seconds("--since", since)
    if at is not None and since is not None and since > at:
        raise InputError("--since lies after --at", given=f"--since {since} --at {at}", do="give since <= at")
    settings = options.engine_settings(methods, device_budget, host_budget, kv, arithmetic, disk)
    working = Working(progress, as_json)
    with working.loading(model):
        from onlooker.engine import Decoding, Engine
    decoding: Any = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    Decoding(**decoding)  # what is out of range costs no loading
    with (
        open_source(source, fps, at, strict, Reading(stream, rate, live, hears_codec(methods), workers=0)) as opened,
        _overlay(overlay, source, fps) as writer,
    ):
        if at is None and opened.is_live:
            raise InputError("a live stream has no end to ask at", given=opened.name, do="--at 10, or onlooker watch")
        if since is not None and opened.duration_s is not None and since > opened.duration_s:
            given = f"--since {since:g}, and the source is {opened.duration_s:.2f} s long"
            raise InputError("--since lies after the end of the source", given=given, do="a smaller --since")
        strange = stranger(model, source)
        for line in () if as_json else strange:
            note(line)
        with working.loading(model):
            engine = Engine.from_pretrained(model, dtype=dtype, device=device, pairs=pairs, **settings)
        end = at if opened.duration_s is None else min(opened.duration_s, at or opened.duration_s)
        with (
            engine.open(trace=writer is not None) as session,
            working.counting("watching", "s of video", None if end is None else round(end)) as watched,
            read_ahead(opened, None if writer else engine.resize) as frames,
        ):
            options.write_prefixes(session, prefix)
            for frame, _ in session.push_many(frames):
                if writer and session.trace:
                    writer.add(frame, session.trace.recomputed, session.trace.kept)
                watched.to(int(frame.time_s))
            if session.time_s is None:
                raise SourceError("the source showed no frame to ask about", given=source, do="check --fps and --at")
            answer, stats = session.ask(question, since=since, **decoding), session.stats()
    remarks = [*_remarks(opened.duration_s, stats, answer, at, fps), *opened.remarks()]
    if as_json:
        more = {"source": opened.name, "overlay": str(overlay) if overlay else None}
        emit(as_dict(answer, stats) | more | {"notes": strange + remarks, "warnings": opened.warnings()})
        return
    _tell(answer, [*explain(answer, stats), *remarks, *([f"wrote {overlay}"] if overlay else [])], opened.warnings())


def _tell(answer: Answer, notes: list[str], warnings: list[str]) -> None:
    """The answer, and what there is to say of it, for people."""
    print(plain(answer.text), flush=True)
    for line in notes:
        note(line)
    for line in warnings:
        warn(line)


@contextlib.contextmanager
def _overlay(path: Path | None, source: str, fps: float):
    """The writer of an overlay, if one is wanted. Raises `InputError` before any work when it cannot be written."""
    if path is None:
        yield None
        return
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError("the overlay would replace the source", given=str(path), do="choose another name")
    from onlooker.video.overlay import OverlayWriter

    with OverlayWriter(path, fps) as writer:
        yield writer


def _remarks(duration_s: float | None, stats: SessionStats, answer: Answer, at: float | None, fps: float) -> list[str]:
    """What a user may not expect of this answer."""
    remarks = []
    # A source without a length may be sampled off the beat of its first picture.
    beats = 2 if duration_s is None else 1
    if at is not None and at > answer.time_s + beats / fps and (duration_s is None or at > duration_s):
        remarks.append(f"the source ended before {at:g} s: answered from its last frame, at {answer.time_s:.2f} s")
    if answer.finish == "length":
        remarks.append("the answer was cut at its longest: raise --max-new-tokens for more")
    if stats.blocks_forgotten:
        remarks.append(f"the memory forgot {stats.blocks_forgotten} of {stats.frames} frames on the way")
    return remarks


def explain(answer: Answer, stats: SessionStats) -> list[str]:
    """What an answer rests on and what it took, in two lines."""
    lines = []
    if answer.citations:
        cited = ", ".join(
            f"{clock(c.start_s)}-{clock(c.end_s)}" if c.end_s > c.start_s else clock(c.start_s)
            for c in answer.citations[:4]
        )
        lines.append(f"asked at {clock(answer.time_s)}, looked mostly at {cited}")
    kept = stats.tokens_kept / max(1, stats.tokens_seen)
    skipped = f"{stats.frames_skipped} skipped by the gate, " if stats.frames_skipped else ""
    together = f", {stats.frames_together} read in groups" if stats.frames_together else ""
    lines.append(
        f"{stats.frames} frames, {skipped}{stats.refreshed_frames} encoded whole{together}; "
        f"{stats.tokens_kept} of {stats.tokens_seen} tokens kept ({kept:.0%}); "
        f"memory {size_text(sum(stats.memory_bytes.values()))}; "
        f"first word after {answer.timing.first_token_s * 1000:.0f} ms"
    )
    return lines


def as_dict(answer: Answer, stats: SessionStats) -> dict[str, Any]:
    """An answer and the stream it came from, for programs."""
    return dataclasses.asdict(answer) | {"stream": dataclasses.asdict(stats)}
