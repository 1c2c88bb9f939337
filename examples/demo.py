"""A clip of Pocket World, watched through STC by the pocket model, with the truth beside every answer.

Run it with `make demo`; it writes out/demo/clip.mp4 and out/demo/overlay.png. On two CPU cores it takes half a minute.
"""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import onlooker
from onlooker.core.events import SessionStats
from onlooker.core.records import QueryRecord
from onlooker.evals.score import is_right
from onlooker.video.overlay import OverlayWriter
from onlooker.world import make_episode, write_video

SEED, SECONDS, FPS = 3, 24.0, 1.0
TASKS = ("present", "attribute", "reading", "counting", "before", "order", "ever", "when")


def main() -> None:
    """Make the clip, watch it, ask on the way, and say what it took."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for clip.mp4 and overlay.png")
    options.add_argument("--model", default="pocket-aware", help="a built-in model or a checkpoint folder")
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)

    began = time.perf_counter()
    clip = chosen.out / "clip.mp4"
    episode = make_episode(SEED, "test", duration_s=SECONDS)
    write_video(episode, clip, fps=4)
    questions = episode.questions(8, rng_seed=1, tasks=TASKS)
    console.print(f"{clip}: {SECONDS:.0f} s of H.264, made in {time.perf_counter() - began:.1f} s")

    began = time.perf_counter()
    engine = onlooker.Engine.from_pretrained(
        chosen.model,
        encoder="stc_cacher",
        compressor="stc_pruner:keep_ratio=0.3",
        memory="rekv:topk=60,first=1,recent=8,score=shares",
    )
    console.print(f"{chosen.model}: loaded in {time.perf_counter() - began:.1f} s\n")

    began = time.perf_counter()
    table = Table("asked at", "question", "answer", "truth", "", box=None, pad_edge=False)
    with (
        OverlayWriter(chosen.out / "overlay.png", FPS) as overlay,
        engine.open(trace=True) as session,
        onlooker.open_video(clip, fps=FPS) as video,
    ):
        for frame in video:
            while questions and questions[0].ask_time < frame.time_s:
                _ask(session, questions.pop(0), table)
            session.push(frame)
            if session.trace:
                overlay.add(frame, session.trace.recomputed, session.trace.kept)
        for question in questions:
            _ask(session, question, table)
        stats = session.stats()
    console.print(table)
    console.print(f"\n{stats.frames} frames and {table.row_count} answers in {time.perf_counter() - began:.1f} s")
    _print_costs(console, stats)
    console.print(f"overlay:         {chosen.out / 'overlay.png'}")


def _ask(session: onlooker.Session, question: QueryRecord, table: Table) -> None:
    answer = session.ask(question.question, max_new_tokens=12)
    verdict = "[green]right[/]" if is_right(question, answer.text) else "[red]wrong[/]"
    # A clock time in square brackets would be read as a style.
    cells = [text.replace("[", r"\[") for text in (question.question, answer.text, question.answer)]
    table.add_row(f"{question.ask_time:.1f} s", *cells, verdict)


def _print_costs(console: Console, stats: SessionStats) -> None:
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stats.stage_s.items())
    held = ", ".join(f"{name} {size:,}" for name, size in stats.memory_bytes.items() if size)
    share = stats.tokens_kept / stats.tokens_seen
    console.print(f"stages:          {stages}", soft_wrap=True)
    console.print(f"tokens kept:     {stats.tokens_kept} of {stats.tokens_seen} seen ({share:.0%})")
    console.print(f"encoded whole:   {stats.refreshed_frames} of {stats.frames} frames")
    console.print(f"memory in bytes: {sum(stats.memory_bytes.values()):,} ({held})", soft_wrap=True)


if __name__ == "__main__":
    main()
