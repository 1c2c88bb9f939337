"""Spans found in second-by-second notes: when a thing came and left, by two questions (LLM4VG's question).

    python -m benchmarks.note_spans --model pocket-notes --streams 16 --out rows.jsonl

LLM4VG (arXiv 2312.14206) has a language model find an event's span in captions of every second. Here notes are lines of
what happened, read by their own search, and a span is the answers to when a thing came and when it left, put together.
Arms: notes as the world tells them (`oracle notes`), those that the model wrote itself while it watched (with `--own`;
else a stream is watched for its last seconds only), and none (`text only`: a few frames of the end are all there is). A
span counts when it overlaps the true one by half (R@0.5).
"""

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.notes_memory import Given, Watched, ask, scripted, told, watch
from onlooker import models
from onlooker.core import provenance
from onlooker.core.records import QueryRecord
from onlooker.engine import Engine
from onlooker.evals.statistics import estimate, paired_gap
from onlooker.think.none import NoThinker
from onlooker.think.segment_notes import SegmentNotes
from onlooker.world import make_episode

REALISES = ("llm4vg",)
FORMS = ("when_appeared", "when_left")
SEEN_S = 4.0
"""Of a stream's end, that is watched."""


def spans_of(seed: int, seconds: float) -> tuple[Watched, list[tuple[float, float]]]:
    """A stream, two questions for each thing that came once and left, in turn, and its true spans in seconds."""
    episode = make_episode(seed, "test", seconds, "long")
    script, rng = scripted(episode), random.Random(f"spans/{seed}")
    end_s, found = float(script.times[-1]), {}
    for _ in range(600):
        record = episode.ask("when", end_s - SEEN_S, rng)
        if record is not None and record.meta["form"] in FORMS:
            found.setdefault((record.meta["thing"], tuple(record.meta["sprites"])), {})[record.meta["form"]] = record
    both = [forms for forms in found.values() if len(forms) == len(FORMS)]
    queries = [forms[form] for forms in both for form in FORMS]
    spans = [(one["when_appeared"].meta["seconds"], one["when_left"].meta["seconds"]) for one in both]
    return Watched(episode, script, tuple(queries)), [span for span in spans if span[0] < span[1]]


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two spans, 0 where one is none."""
    if one[0] >= one[1]:
        return 0.0
    inside = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, inside) / (max(one[1], other[1]) - min(one[0], other[0]))


def found_by(queries: Sequence[QueryRecord], answers: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of every span, its overlap with the one that two answers make."""
    told = []
    for place in range(0, len(queries), 2):
        times = [re.search(r"(\d+):(\d+)", one["said"]) for one in answers[place : place + 2]]
        true = queries[place].meta["seconds"], queries[place + 1].meta["seconds"]
        said = [60.0 * int(at[1]) + int(at[2]) for at in times if at]
        told.append(overlap((said[0], said[1]), true) if len(said) == 2 else 0.0)
    return told


def row(answers: Mapping[int, Mapping[str, list[float]]]) -> dict[str, Any]:
    """What each arm finds, by stream."""
    out: dict[str, Any] = {"bench": "note_spans", "streams": len(answers)}
    names = [str(seed) for seed, arms in answers.items() for _ in arms["oracle notes"]]
    hits = {}
    for arm in next(iter(answers.values())):
        overlaps = [value for arms in answers.values() for value in arms[arm]]
        hits[arm] = [float(value >= 0.5) for value in overlaps]
        mean = estimate(hits[arm], names)
        out[arm] = {
            "spans": len(overlaps), "r_at_0.5": round(mean.value, 4), "low": round(mean.low, 4),
            "high": round(mean.high, 4), "overlap": round(sum(overlaps) / len(overlaps), 4),
        }  # fmt: skip
    for arm in hits.keys() - {"text only"}:
        gap = paired_gap([a - b for a, b in zip(hits[arm], hits["text only"], strict=True)], names)
        out[arm] |= {"gap": round(gap.gap, 4), "gap_low": round(gap.low, 4), "gap_high": round(gap.high, 4)}
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-notes")
    parser.add_argument("--think", default="clock_notes:most=4096", help="whose search reads the notes")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--own", action="store_true", help="watch all of a stream, and write notes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, help="the row is added to it")
    given = parser.parse_args()
    model = models.load(given.model, device=given.device)
    engine = Engine(model, encoder="full", compressor="identity", memory="sliding_window:window_tokens=300",
                    think=given.think)  # fmt: skip
    thinker, answers = engine.serving.thinker, {}
    assert isinstance(thinker, SegmentNotes), "notes that questions search"
    for seed in range(given.first_seed, given.first_seed + given.streams):
        watched, spans = spans_of(seed, given.seconds)
        if not spans or 2 * len(spans) != len(watched.queries):
            continue
        begins = None if given.own else float(watched.script.times[-1]) - SEEN_S
        ((session,),) = watch(engine, [watched], [300], begins).values()
        arms = {"oracle notes": Given(thinker, told(watched, 0.0)), "text only": NoThinker()}
        arms |= {"own notes": None} if given.own else {}
        answers[seed] = {
            name: found_by(watched.queries, ask(engine, session, how, watched.queries)) for name, how in arms.items()
        }
        session.close()
        print(
            f"stream {seed}: {len(spans)} spans, "
            + ", ".join(f"{name} {sum(v >= 0.5 for v in values)}" for name, values in answers[seed].items()),
            flush=True,
        )
    found = row(answers) | {
        "model": given.model, "think": given.think, "seconds": given.seconds, "first_seed": given.first_seed,
        "device": str(model.spec.device), "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
