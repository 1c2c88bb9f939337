"""What notes add to a memory of a few seconds: questions whose evidence is older than all that the memory holds.

    python -m benchmarks.notes_memory --model pocket-notes --level L2 --seconds 90 --streams 24 --out rows.jsonl
    python -m benchmarks.notes_memory --model pocket-notes --level L2 --seconds 39 --frames 8 --out rows.jsonl
    python -m benchmarks.notes_memory --model pocket-notes --minutes 33 --early 3 --streams 8 --out rows.jsonl
    python -m benchmarks.notes_memory --model pocket-notes --minutes 33 --early 3 --streams 8 --reading --out rows.jsonl
    python -m benchmarks.notes_memory --table rows.jsonl

Every stream is watched through a sliding window, with notes (`--think`) and without, and through a wider window that
holds as many bytes more as a question reads of notes. At its end it is asked about what came and left before the wider
window: whether, when, in which order, how many; with `--minutes` about things of the first five that never come back,
as `half_hour` asks. The arms: the window alone, the wider window, the model's own notes, notes told by the world
(`oracle`), and those with a fifth of them wrong or missing. A row a stream: every answer of every arm, how many of the
happenings its notes tell rightly, and for each question whether its own notes tell what it asks about.

Counts are drawn where the world can balance their answers, 0 to 5: at L2 up to 40 seconds (hence `--seconds 39
--frames 8`), at L4 up to its end; later there are more than five of everything, and none is drawn. What was drawn is
printed.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.long_streams import Stream
from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.contracts import Thinker
from onlooker.core.events import Failed, Noted
from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.core.state import StreamState
from onlooker.engine import Engine, Session
from onlooker.engine.sampling import Decoding
from onlooker.evals.replay import Outcome
from onlooker.evals.score import worth
from onlooker.evals.statistics import estimate, holm, paired_gap
from onlooker.think.none import NoThinker
from onlooker.think.segment_notes import SegmentNotes
from onlooker.world import Episode, make_episode
from onlooker.world.episode import Split
from recipes.pocket.notes_look import happenings
from recipes.pocket.told import FROM_NOTES, Happening, Script, look_at, notes_of

FRAME_TOKENS = 66
"""Of a frame with its time, uncompressed."""
TASKS = ("ever", "when", "order", "since")
ARMS = ("window", "wider", "own notes", "oracle notes", "notes, a fifth wrong")
WRONG = 0.2
AT_ONCE = 64


@dataclass(frozen=True)
class Watched:
    """One stream: what happens in it, and what is asked at its end."""

    episode: Episode
    script: Script
    queries: tuple[QueryRecord, ...]


@dataclass(frozen=True)
class Given(Thinker):
    """Notes that somebody else wrote, read as `notes` would be."""

    contract_exceptions: ClassVar[dict[str, str]] = {}
    hidden: ClassVar[bool] = True
    notes: SegmentNotes
    texts: tuple[Noted, ...]

    def new_state(self) -> StreamState:
        """That of the thinker whose notes these stand for."""
        return self.notes.new_state()

    def think(self, moment: Any, notes: Sequence[Noted], state: StreamState) -> None:
        """Never."""

    def kept(self, state: StreamState) -> Sequence[Noted]:
        """All of them."""
        return self.texts

    def read(self, state: StreamState, question: str, tokens: Any) -> Sequence[Noted]:
        """Those that the other would read of them."""
        filled = self.notes.new_state()
        for note in self.texts:
            self.notes.keep(note, filled)
        return self.notes.read(filled, question, tokens)


def short(seed: int, level: str, seconds: float, before_s: float, most: int, split: Split = "test") -> Watched:
    """A stream of a level, and questions about what is older than `before_s`."""
    episode = make_episode(seed, split, seconds, "long" if level == "L0" else "mixed", level=level)
    script = scripted(episode)
    rng, end_s, found = random.Random(f"notes/{seed}"), float(script.times[-1]), {}
    for number in range(60 * most):
        task = TASKS[number % len(TASKS)]
        if task == "since" and level == "L0":
            continue
        record = episode.ask(task, end_s, rng)
        if record is None or record.meta["form"] not in FROM_NOTES:
            continue
        # What never was has no age; where some of the evidence is old, the window alone cannot tell.
        begins = min((a for a, _ in record.evidence), default=0.0)
        if begins < end_s - before_s and sum(one.task == task for one in found.values()) < most:
            found.setdefault((record.question, record.answer), record)
    return Watched(episode, script, balanced(list(found.values())))


def balanced(records: list[QueryRecord]) -> tuple[QueryRecord, ...]:
    """As many of "ever" that were as that were not: a habit of yes, or of no, is right in half of them. And of counts
    no more noughts than the most frequent other number has: what never came is asked for most easily."""
    yes, no = ([r for r in records if r.task == "ever" and r.answer == word] for word in ("yes", "no"))
    few = min(len(yes), len(no))
    counts = [r for r in records if r.task == "since"]
    others = Counter(r.answer for r in counts if r.answer != "0")
    none = [r for r in counts if r.answer == "0"][: max(others.values(), default=0)]
    rest = (r for r in records if r.task not in ("ever", "since"))
    return (*yes[:few], *no[:few], *none, *(r for r in counts if r.answer != "0"), *rest)


def long(seed: int, minutes: float, early: float, split: Split = "test") -> Watched:
    """A stream as `half_hour` has it, and its questions about what came in its first `early` minutes."""
    stream = Stream.of_seed(seed, split, minutes, early, per_hour=16.0)
    return Watched(stream.episode, scripted(stream.episode), stream.queries)


def scripted(episode: Episode) -> Script:
    """What happens in an episode, one frame a second."""
    times = np.arange(int(episode.duration_s - 0.5) + 1, dtype=float)
    script = Script(episode, times, 0, len(times), 0)
    look_at(script)
    return script


def told(watched: Watched, wrong: float) -> tuple[Noted, ...]:
    """The notes of a stream as the world tells them."""
    script, rng = watched.script, random.Random(f"wrong/{watched.episode.seed}")
    texts = notes_of(script, len(script.times) - 1, wrong, rng)
    return tuple(Noted(0.0, text, "thought") for text in texts)


def right_ones(script: Script, notes: Iterable[Noted]) -> tuple[set[Happening], int, int]:
    """The happenings that notes tell, to the second or one beside it; how many there are; how many the notes tell."""
    said: Counter[tuple[int, str]] = Counter()
    number = 0
    for note in notes:
        for one in happenings(note.text):
            clock, _, what = one.partition("] ")
            minute, _, second = clock.strip("[").partition(":")
            number += 1
            if minute.isdigit() and second.isdigit():
                said[60 * int(minute) + int(second), what] += 1
    found = set()
    for happening in script.happenings:
        at = int(script.times[happening.frame]) % 6000
        for near in (at, at - 1, at + 1):
            if said[near, happening.what]:
                said[near, happening.what] -= 1
                found.add(happening)
                break
    return found, len(script.happenings), number


def is_told(query: QueryRecord, watched: Watched, right: set[Happening]) -> bool | None:
    """Whether notes tell all that a question is about; None where that is nothing."""
    ids = set(query.meta["sprites"])
    asked = [one for one in watched.script.happenings if one.sprite in ids]
    verb = {"when_left": "left"}.get(query.meta["form"], "came")
    asked = [one for one in asked if one.what.endswith(verb) or one.what.startswith("word")]
    return all(one in right for one in asked) if asked else None


def open_with(engine: Engine, memory: str) -> Session:
    """A stream with a memory of its own."""
    session = engine.open()
    session.memory = registry.make("memory", memory)
    session.states["memory"] = session.memory.new_state()
    return session


def watch(
    engine: Engine, streams: Sequence[Watched], windows: Sequence[int], from_s: float | None = None
) -> dict[int, list[Session]]:
    """Watch streams to their ends, with notes through the first window, through others without; or from a time on,
    without any."""
    sessions = {}
    for place, window in enumerate(windows):
        sessions[window] = [open_with(engine, f"sliding_window:window_tokens={window}") for _ in streams]
        for session in sessions[window] if place or from_s is not None else ():
            session.thinker = NoThinker()
            session.states["think"] = session.thinker.new_state()
    shown = time.monotonic()
    for frames in zip(*(one.episode.frames(fps=1.0, size=(128, 128)) for one in streams), strict=True):
        if frames[0].time_s < (from_s or 0.0):
            continue
        arrivals = [(s, f) for some in sessions.values() for s, f in zip(some, frames, strict=True)]
        failed = [event for event in engine.step(arrivals) if isinstance(event, Failed)]
        if failed:
            raise failed[0].error
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            print(f"{frames[0].time_s:.0f} s of {len(streams)} streams", flush=True)
    return sessions


def ask(engine: Engine, session: Session, thinker: Thinker | None, queries: Sequence[QueryRecord]) -> list[dict]:
    """The answers of one arm, in order."""
    fork, out = session.fork(), []
    if thinker is not None:
        fork.thinker, fork.states = thinker, {**fork.states, "think": thinker.new_state()}
    for first in range(0, len(queries), AT_ONCE):
        some = queries[first : first + AT_ONCE]
        flying = [fork.submit(query.question, decoding=Decoding(6)) for query in some]
        while pending := [request for request in flying if not request.done]:
            engine.step([], pending)
        for query, request in zip(some, flying, strict=True):
            said = request.answer()
            reply = ReplyRecord(query.id, query.ask_time, said.text, "answer")
            out.append({"said": said.text, "worth": worth(Outcome(query, (reply,)))})
    fork.close()
    return out


def row(
    engine: Engine, watched: Watched, near: Session, wide: Session | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Every arm on one stream; no wider window where there was none."""
    thinker = engine.serving.thinker
    assert isinstance(thinker, SegmentNotes), "notes that questions search"
    queries = watched.queries
    wrote = isinstance(near.thinker, SegmentNotes)
    own = list(thinker.kept(near.states["think"])) if wrote else []  # pyright: ignore[reportArgumentType] - its own
    right, wanted, number = right_ones(watched.script, own)
    arms = {
        "window": ask(engine, near, NoThinker(), queries),
        "oracle notes": ask(engine, near, Given(thinker, told(watched, 0.0)), queries),
        "notes, a fifth wrong": ask(engine, near, Given(thinker, told(watched, WRONG)), queries),
    }
    if wrote:
        arms["own notes"] = ask(engine, near, None, queries)
    if wide is not None:
        arms["wider"] = ask(engine, wide, NoThinker(), queries)
    asked = [
        {"task": q.task, "form": q.meta["form"], "want": q.answer, "age_s": watched.script.times[-1]
         - max((b for _, b in q.evidence), default=0.0), "told": is_told(q, watched, right)}
        for q in queries
    ]  # fmt: skip
    stats = near.stats()
    return {
        "bench": "notes_memory", "stream": watched.episode.seed, "asked": asked, "arms": arms,
        "notes": {"right": len(right), "wanted": wanted, "told": number, "texts": len(own),
                  "bytes": sum(len(note.text.encode()) for note in own)},
        "wrote": [note.text for note in own],
        "bytes": {"window": stats.memory_bytes, "wider": wide and wide.stats().memory_bytes},
        "thoughts": stats.thoughts, "dropped": stats.thoughts_dropped, **facts,
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every arm by task, with intervals, and its gap to the wider window without notes (to the window, where there was
    no wider), corrected for their number."""
    out = []
    for task in ("all", *TASKS):
        for arm in ARMS:
            values, gaps, clusters, yes = [], [], [], []
            for one in rows:
                arms = one["arms"]
                if arm not in arms:
                    continue
                for asked, said, other in zip(one["asked"], arms[arm], arms.get("wider", arms["window"]), strict=True):
                    if task in ("all", asked["task"]):
                        values.append(said["worth"])
                        gaps.append(said["worth"] - other["worth"])
                        clusters.append(str(one["stream"]))
                        yes += [said["said"] == "yes"] if asked["task"] == "ever" else []
            if not values:
                continue
            mean, gap = estimate(values, clusters), paired_gap(gaps, clusters)
            out.append({
                "task": task, "arm": arm, "questions": len(values), "right": mean.value, "low": mean.low,
                "high": mean.high, "more": gap.gap, "more_low": gap.low, "more_high": gap.high, "p": gap.p,
                "says_yes": sum(yes) / len(yes) if yes else None,
            })  # fmt: skip
    for one, p in zip(out, holm([one["p"] for one in out]), strict=True):
        one["p_corrected"] = p
    return out


def by_note(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Answers from own notes where these tell what is asked about, and where they do not; and the notes' own worth."""
    found: dict[str, list[float]] = {"told": [], "not told": []}
    for one in rows:
        own = one["arms"].get("own notes")
        for asked, said in zip(one["asked"], own, strict=True) if own else ():
            if asked["told"] is not None:
                found["told" if asked["told"] else "not told"].append(said["worth"])
    sums = {name: sum(one["notes"][name] for one in rows) for name in ("right", "wanted", "told", "bytes")}
    return {
        "notes_recall": sums["right"] / max(1, sums["wanted"]), "notes_precision": sums["right"] / max(1, sums["told"]),
        "bytes_a_stream": sums["bytes"] / len(rows),
        **{f"right, {name}": (sum(v) / len(v) if v else None, len(v)) for name, v in found.items()},
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-notes")
    parser.add_argument("--think", default="clock_notes:most=4096")
    parser.add_argument("--level", default="L2", help="of short streams")
    parser.add_argument("--seconds", type=float, default=90.0, help="of short streams")
    parser.add_argument("--minutes", type=float, default=0.0, help="long streams of L0 instead, with early things")
    parser.add_argument("--early", type=float, default=5.0, help="minutes of long streams that are asked about")
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=8, help="streams watched in the same steps")
    parser.add_argument("--frames", type=int, default=16, help="frames that the window holds")
    parser.add_argument("--most", type=int, default=8, help="questions of a task in a short stream")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--reading", action="store_true", help="watch only the end, read given notes: minutes on a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="begin no streams that would end later")
    parser.add_argument("--out", type=Path, default=Path("notes_memory.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these rows and stop")
    given = parser.parse_args(argv)
    if given.table:
        rows = [json.loads(line) for path in given.table for line in path.read_text().splitlines()]
        for one in table(rows):
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in one.items()}))
        print(json.dumps(by_note(rows)))
        return
    model = models.load(given.model, device=given.device)
    window = given.frames * FRAME_TOKENS
    engine = Engine(model, encoder="full", compressor="identity", memory=f"sliding_window:window_tokens={window}",
                    think=given.think)  # fmt: skip
    thinker = registry.make("think", given.think)
    more = -(-int(getattr(thinker, "read_tokens", 0)) // FRAME_TOKENS) + 1
    # Of what came half an hour ago a window that is a second wider holds no more.
    windows = (window,) if given.minutes else (window, window + more * FRAME_TOKENS)
    facts = {
        "model": given.model, "think": given.think, "split": given.split,
        "level": "L0" if given.minutes else given.level,
        "seconds": 60 * given.minutes or given.seconds, "frames": given.frames, "windows": windows,
        "device": torch.cuda.get_device_name() if model.spec.device.type == "cuda" else "cpu",
        "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip
    began, longest = time.monotonic(), 0.0
    last = given.first_seed + given.streams
    for first in range(given.first_seed, last, given.together):
        start = time.monotonic()
        if start - began + longest > given.limit_s:
            break
        seeds = range(first, min(last, first + given.together))
        before_s = given.frames + more + 1.0
        if given.minutes:
            streams = [long(seed, given.minutes, given.early, given.split) for seed in seeds]
        else:
            about = (given.level, given.seconds, before_s, given.most, given.split)
            streams = [short(seed, *about) for seed in seeds]
        drawn = Counter(query.task for watched in streams for query in watched.queries)
        print(f"questions: {', '.join(f'{task} {drawn[task]}' for task in TASKS)}", flush=True)
        end_s = float(streams[0].script.times[-1])
        sessions = watch(engine, streams, windows, end_s - before_s if given.reading else None)
        with given.out.open("a", encoding="utf-8") as lines:
            for watched, *opened in zip(streams, *(sessions[window] for window in windows), strict=True):
                wide = opened[1] if len(opened) > 1 else None
                lines.write(json.dumps(row(engine, watched, opened[0], wide, facts)) + "\n")
                lines.flush()
                for session in opened:
                    session.close()
        longest = max(longest, 1.1 * (time.monotonic() - start))
        print(f"{len(streams)} streams, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
