"""How much of what happens a thinker's own notes tell, and how much of what they tell is right, on validation streams.

    python -m benchmarks.note_recall --level L0 --streams 6 --seconds 120 --think clock_notes \
        --think "track_notes(heads:names=informative,quiet_s=0)" --out rows.jsonl

The cheap look before `notes_memory`, which asks questions: no answer is better than the notes that it reads. Every
stream is watched once for each thinker, through a sliding window; what came, left, changed or was written is compared
to the second (or one beside it) with the script. A row a stream and thinker, and the sums at the end.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.notes_memory import FRAME_TOKENS, scripted
from onlooker import models
from onlooker.core import provenance
from onlooker.core.events import Failed
from onlooker.engine import Engine
from onlooker.world import Episode, make_episode
from recipes.pocket.told import Script

KINDS = ("came", "left", "changed", "word")
_LINE = re.compile(r"\[(\d\d):(\d\d)\] (.+)")


def told_by(texts: Sequence[str]) -> list[tuple[int, str]]:
    """The seconds and happenings of notes; a line that tells of several things that came is as many."""
    found = []
    for text in texts:
        for minute, second, said in _LINE.findall(text):
            parts = [f"{part.strip()} came" for part in said.split("came")[:-1]] or [said.strip()]
            found += [(60 * int(minute) + int(second), part) for part in parts]
    return found


def counted(script: Script, told: Sequence[tuple[int, str]]) -> dict[str, int]:
    """Of each kind: how many there are, are told, and are told rightly."""
    left = Counter((int(script.times[one.frame]), one.what) for one in script.happenings)
    out = Counter({f"{kind} wanted": 0 for kind in KINDS})
    out.update(f"{kind_of(what)} wanted" for _, what in left.elements())
    for at, what in told:
        out[f"{kind_of(what)} told"] += 1
        near = next((second for second in (at, at - 1, at + 1) if left[second, what]), None)
        if near is not None:
            left[near, what] -= 1
            out[f"{kind_of(what)} right"] += 1
    return dict(out)


def kind_of(what: str) -> str:
    """Of a happening in words; what is none of them counts as a thing that came."""
    return next((kind for kind in KINDS if kind in what.split()), "came")


def watch(engine: Engine, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Watch streams side by side, and count what their notes tell."""
    sessions = [engine.open() for _ in episodes]
    for frames in zip(*(one.frames(fps=1.0, size=(128, 128)) for one in episodes), strict=True):
        for event in engine.step(list(zip(sessions, frames, strict=True))):
            if isinstance(event, Failed):
                raise event.error
    rows = []
    for episode, session in zip(episodes, sessions, strict=True):
        stats, notes = session.stats(), [note.text for note in session.notes()]
        found = counted(scripted(episode), told_by(notes))
        rows.append({"stream": episode.seed, "counts": found, "thoughts": stats.thoughts})
        session.close()
    return rows


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Recall and precision of each kind that was told or wanted."""
    whole: Counter[str] = Counter()
    for row in rows:
        whole.update(row["counts"])
    out: dict[str, Any] = {}
    for kind in KINDS:
        wanted, told, right = (whole[f"{kind} {name}"] for name in ("wanted", "told", "right"))
        recall, precision = (round(right / n, 3) if n else None for n in (wanted, told))
        out[kind] = {"wanted": wanted, "told": told, "recall": recall, "precision": precision}
    return out


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-notes")
    parser.add_argument("--think", action="append", help="a thinker that writes `[mm:ss]` lines; may be repeated")
    parser.add_argument("--level", default="L0")
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=7000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--frames", type=int, default=16, help="frames that the window holds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("note_recall.jsonl"))
    given = parser.parse_args(argv)
    model = models.load(given.model, device=given.device)
    kind = "long" if given.level == "L0" else "mixed"
    seeds = range(given.first_seed, given.first_seed + given.streams)
    episodes = [make_episode(seed, "validation", given.seconds, kind, level=given.level) for seed in seeds]
    facts = {
        "bench": "note_recall", "model": given.model, "level": given.level, "seconds": given.seconds,
        "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip
    for think in given.think or ["clock_notes"]:
        engine = Engine(model, encoder="full", compressor="identity", think=think,
                        memory=f"sliding_window:window_tokens={given.frames * FRAME_TOKENS}")  # fmt: skip
        rows = watch(engine, episodes)
        with given.out.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(facts | {"think": think} | row) + "\n" for row in rows)
        print(
            json.dumps({"think": think, **summed(rows), "thoughts": sum(row["thoughts"] for row in rows)}), flush=True
        )


if __name__ == "__main__":
    main()
