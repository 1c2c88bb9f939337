"""What captions of changes tell that captions of key frames alone do not (ShareGPT4Video), at equal tokens.

    python -m benchmarks.delta_captions --device cuda:0 --streams 32 --out rows.jsonl

Streams of Pocket World are watched by the model that was taught to write notes: with `delta_notes`, which tells what
has changed since the last key frame, and with its twin, which describes the same key frames one by one or, since its
descriptions are short, more key frames for the same tokens. A thing that comes is told when the caption of the first
key frame at or after its coming names its colour and shape. A row a stream as it is done, and then the gaps (interval
and sign-flip test over streams).
"""

import argparse
import json
import time
from pathlib import Path

from onlooker import models
from onlooker.core import provenance
from onlooker.core.events import Noted
from onlooker.engine import Engine
from onlooker.evals.live.scenes import Scene, scene
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.statistics import paired_gap

WAYS = {
    "delta": "delta_notes:summarise=0", "shorter": "delta_notes:summarise=0,longest=6",
    "independent": "benchmarks/twins/independent_notes.py",
    "oftener": "benchmarks/twins/independent_notes.py:alike=0.97",
}  # fmt: skip
"""Captions of at most 16 tokens. `independent`, on the same key frames, ends its own earlier; `oftener` describes so
many key frames that it writes as much as `shorter`: their gap is the line."""
PAIRS = (("delta", "independent"), ("shorter", "independent"), ("shorter", "oftener"))


def captions(engine: Engine, shows: list[Scene]) -> list[list[Noted]]:
    """The captions of some streams that are watched side by side."""
    sessions = [engine.open() for _ in shows]
    for frames in zip(*(show.frames() for show in shows), strict=True):
        engine.step(list(zip(sessions, frames, strict=True)))
    found = [[note for note in session.notes() if note.kind == "thought"] for session in sessions]
    for session in sessions:
        session.close()
    return found


def told(show: Scene, notes: list[Noted], until_s: float) -> list[float]:
    """Of each thing that came up to a time, whether the next caption names it."""
    out = []
    for event in show.arrivals:
        if event.start_s <= until_s:
            after = [note.text.casefold() for note in notes if note.time_s >= event.start_s - 1e-6]
            out.append(float(bool(after) and event.what in after[0]))
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-notes")
    parser.add_argument("--level", default="L0")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--seeds", default="sealed:systems-sharegpt4video-second-202611", help="or a number, to try settings"
    )
    parser.add_argument("--limit-s", type=float, default=3600.0, help="begin no more streams after that")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    began, model = time.monotonic(), models.load(given.model, device=given.device)
    first = int(given.seeds) if given.seeds.isdigit() else RunSettings(seeds=given.seeds).first_seed
    memory = "sliding_window:window_tokens=3000"
    engines = {way: Engine(model, think=think, memory=memory) for way, think in WAYS.items()}
    rows: list[dict] = []
    for start in range(0, given.streams, given.together):
        if time.monotonic() - began > given.limit_s:
            break
        seeds = range(first + start, first + min(start + given.together, given.streams))
        shows = [scene(seed, "test", given.seconds, 1.0, level=given.level) for seed in seeds]
        found = {way: captions(engine, shows) for way, engine in engines.items()}
        for n, (seed, show) in enumerate(zip(seeds, shows, strict=True)):
            row: dict = {"stream": seed}
            last = max((note.time_s for way in WAYS for note in found[way][n]), default=0.0)
            for way in WAYS:
                notes = found[way][n]
                tokens = sum(len(model.note_ids(note.text)) for note in notes)
                row[way] = {"told": told(show, notes, last), "captions": len(notes), "tokens": tokens}
                row[way]["first"] = [note.text for note in notes[:3]]
            rows.append(row)
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{len(rows)} streams, {time.monotonic() - began:.0f} s", flush=True)
    tokens = {way: sum(row[way]["tokens"] for row in rows) for way in WAYS}
    for way, rival in PAIRS:
        pairs = [
            (row["stream"], *pair) for row in rows for pair in zip(row[way]["told"], row[rival]["told"], strict=True)
        ]
        gap = paired_gap([a - b for _, a, b in pairs], [str(stream) for stream, _, _ in pairs])
        whole = {
            "bench": "delta_captions", "way": way, "rival": rival, "model": given.model, "level": given.level,
            "streams": len(rows), "events": len(pairs), "told": sum(a for _, a, _ in pairs) / len(pairs),
            "rival_told": sum(b for _, _, b in pairs) / len(pairs),
            "gap": gap.gap, "low": gap.low, "high": gap.high, "p": gap.p,
            "tokens": tokens[way], "rival_tokens": tokens[rival],
            "captions": sum(row[way]["captions"] for row in rows),
            "rival_captions": sum(row[rival]["captions"] for row in rows),
            "commit": provenance.commit(), "versions": provenance.versions(), "device": str(model.spec.device),
        }  # fmt: skip
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")
        print(json.dumps(whole))


if __name__ == "__main__":
    main()
