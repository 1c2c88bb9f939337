"""A clip of Pocket World, watched through STC by the pocket model, with the truth beside every answer.

Run it with `make demo`; it writes out/demo/clip.mp4 and out/demo/overlay.png.
"""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import onlooker
from onlooker.video.overlay import OverlayWriter
from onlooker.world import make_episode, write_video

OUT = Path("out/demo")
SEED, SECONDS, FPS = 4, 24.0, 1.0


def main() -> None:
    """Make the clip, watch it, ask on the way, and say what it took."""
    console = Console(highlight=False)
    OUT.mkdir(parents=True, exist_ok=True)
    clip = OUT / "clip.mp4"
    episode = make_episode(SEED, "test", duration_s=SECONDS)
    write_video(episode, clip, fps=8, size=(256, 256))
    questions = episode.questions(
        8, rng_seed=1, tasks=["present", "attribute", "reading", "counting", "before", "order"]
    )
    console.print(
        f"{clip}: {SECONDS:.0f} s of H.264, {clip.stat().st_size / 1024:.0f} KiB; "
        f"{len(questions)} questions on the way\n"
    )

    engine = onlooker.Engine.from_pretrained(
        "pocket-aware", encoder="stc_cacher", compressor="stc_pruner:keep_ratio=0.3", memory="rekv"
    )
    table = Table("at", "question", "answer", "truth", "", box=None, pad_edge=False)
    overlay = OverlayWriter(OUT / "overlay.png", FPS)
    began = time.perf_counter()
    with engine.open(trace=True) as session, onlooker.open_video(clip, fps=FPS) as video:
        waiting = sorted(questions, key=lambda question: question.ask_time)
        for frame in video:
            while waiting and waiting[0].ask_time < frame.time_s:
                _ask(session, waiting.pop(0), table)
            session.push(frame)
            overlay.add(frame, session.trace.recomputed, session.trace.kept)
        for question in waiting:
            _ask(session, question, table)
        stats = session.stats()
    overlay.close()

    console.print(table)
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stats.stage_s.items())
    held = ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in stats.memory_bytes.items() if size)
    console.print(f"\n{stats.frames} frames in {time.perf_counter() - began:.1f} s, questions included")
    console.print(f"seconds by stage: {stages}")
    console.print(
        f"tokens kept: {stats.tokens_kept} of {stats.tokens_seen}; frames encoded whole: {stats.refreshed_frames}"
    )
    console.print(f"memory: {held}")
    console.print(f"wrote {OUT / 'overlay.png'}")


def _ask(session: onlooker.Session, question, table: Table) -> None:
    answer = session.ask(question.question, max_new_tokens=12)
    right = answer.text == question.answer
    table.add_row(
        f"{question.ask_time:.1f} s", question.question, answer.text, question.answer, "right" if right else "wrong"
    )


if __name__ == "__main__":
    main()
