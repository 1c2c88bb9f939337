"""What happened half an hour ago: memories compared on long streams, at equal tokens read by every answer.

    python -m benchmarks.half_hour --clips 6 --out rows.jsonl

In every stream things appear that never come back, in its first minutes or all along; at its end it is asked of each
whether it ever appeared (as often about something that never did) and when, and what is to be seen now. Memories that
only search what is parked answer from forks of one session which watched through a window and parked everything older;
those that forget, thin out or hold tokens watch the stream beside it, frame by frame in the same steps. `LATE` reads
the stream's last two minutes only, since it holds no more. Beside them `full` memory, and a search that is told where
the evidence lies: what the model can do at all when the right frames are found.

One line a stream and memory, written when it has answered: every answer with its age, tokens read, bytes held.
`tools/memories.py` makes tables and pictures of them. Several processes (`--workers`) share the work, each on one of
`--devices` in turn: groups of memories, and `--together` streams at a time, all in the same steps. None begins what it
would not end within `--seconds`.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.long_streams import Stream, Told
from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.contracts import MemoryPolicy
from onlooker.core.events import Failed
from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.engine import Engine, Session
from onlooker.engine.sampling import Decoding
from onlooker.evals.replay import Outcome
from onlooker.evals.score import worth

FRAMES = 48
"""Frames in view of every answer: the longest clips that the pocket models were trained on."""
TOKENS = FRAMES * 21
"""The same in tokens, at the 21 a frame (two of them its time) that STC-Pruner leaves with its defaults."""
WATCHING = f"rekv:topk={FRAMES - 5},first=1,recent=4,score=shares,window_tokens={TOKENS}"
"""Watches through a window and parks everything."""
SEARCHING = (
    WATCHING,
    WATCHING + ",level=true",
    f"rekv:topk={FRAMES - 4},recent=4,window_tokens={TOKENS}",
    f"sliding_window:window_tokens={TOKENS}",
    f"select_recent:recent=8,budget={FRAMES - 9}",
    f"select_recent:recent=8,budget={FRAMES - 9},bar=0",
    f"select_recent:recent=24,budget={FRAMES - 25},bar=0",
    f"streamingtom:recall_tokens={TOKENS},recent=4,window_tokens={TOKENS}",
)
"""Answer from forks of the one that parks everything."""
LATE = f"last_frames:frames={FRAMES}"
LATE_S = 120
BESIDE = (
    ("full",),
    (f"resv:share=0.5,window_tokens={TOKENS}",),
    ("flash_vstream:form=star,clusters=48",),
    ("flash_vstream:form=csm_dam,clusters=26,details=24",),
    (f"curvestream:frames={FRAMES - 1}",),
    ("streamforest:short_frames=24,event_frames=190",),
    ("scene_tiling:scenes=40,frames=8", LATE),
    (f"deep_sink:window_frames={FRAMES},sink_frames={FRAMES // 2}",),
    (f"streaming_vlm:vision_s={2 * FRAMES}",),
    (f"infinipot_v:window_tokens={TOKENS},keep_tokens={TOKENS * 3 // 4}",),
    ("video_streaming:topk=9",),
    ("carriers:bank=231,tokens=4",),
    (f"livevlm:keep_tokens={TOKENS * 5 // 3},recent=16",),
    ("participative:sink_frames=24,recent=8,top_tokens=336",),
)
"""Watch streams themselves, a job for each group."""
AT_ONCE = 64
"""Questions in one step."""
TOLD = "told where to look"


@dataclass(frozen=True)
class Asked:
    """A question to a session; `told` is the memory that keeps what a search finds which is told where."""

    session: Session
    query: QueryRecord
    told: MemoryPolicy | None = None


def answers(engine: Engine, asked: Sequence[Asked]) -> list[Outcome]:
    """What sessions say, many questions in one step."""
    outcomes: list[Outcome] = []
    for first in range(0, len(asked), AT_ONCE):
        some = asked[first : first + AT_ONCE]
        with ExitStack() as stack:
            flying = []
            for one in some:
                session = one.session
                if one.told is not None:
                    session = stack.enter_context(session.fork())
                    session.memory = Told(one.told, one.query.evidence, FRAMES)
                flying.append(session.submit(one.query.question, decoding=Decoding(6)))
            while pending := [request for request in flying if not request.done]:
                engine.step([], pending)
            for one, request in zip(some, flying, strict=True):
                said, query = request.answer(), one.query
                reply = ReplyRecord(query.id, query.ask_time, said.text, "answer", meta={"usage": said.usage})
                outcomes.append(Outcome(query, (reply,)))
    return outcomes


def open_with(engine: Engine, memory: str) -> Session:
    """A stream with a memory of its own."""
    session = engine.open()
    session.memory = registry.make("memory", memory)
    session.states["memory"] = session.memory.new_state()
    return session


def watch(
    streams: Sequence[Stream], engines: Mapping[bool, Engine], memories: Sequence[str], fps: float
) -> dict[str, list[Session]]:
    """Watch streams to their ends, all of them under all memories in the same steps; a session a stream, by memory."""
    sessions: dict[str, list[Session]] = {}
    for name in memories:
        held = registry.make("memory", name).holds_tokens
        sessions[name] = [open_with(engines[held], name) for _ in streams]
    late_s, told = streams[0].episode.duration_s - LATE_S, time.monotonic()
    for frames in zip(*(stream.frames(fps) for stream in streams), strict=True):
        for held, engine in engines.items():
            arrivals = [
                (session, frame)
                for name, some in sessions.items()
                if some[0].memory.holds_tokens == held and (name != LATE or frames[0].time_s >= late_s)
                for session, frame in zip(some, frames, strict=True)
            ]
            failed = [event for event in engine.step(arrivals) if isinstance(event, Failed)] if arrivals else []
            if failed:
                raise failed[0].error
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{frames[0].time_s:.0f} s of {len(streams)} streams, {memories[0]}", flush=True)
    return sessions


def ask_all(
    streams: Sequence[Stream],
    sessions: Mapping[str, list[Session]],
    engines: Mapping[bool, Engine],
    searching: Sequence[str],
) -> Iterator[tuple[str, list[Session], list[Outcome]]]:
    """Put every stream's questions under every memory."""

    def questions(some: Sequence[Session], told: MemoryPolicy | None = None) -> list[Asked]:
        return [Asked(one, query, told) for one, s in zip(some, streams, strict=True) for query in s.queries]

    for name, some in sessions.items():
        if name != WATCHING:
            yield name, some, answers(engines[some[0].memory.holds_tokens], questions(some))
    first = sessions.get(WATCHING, ())
    for name in searching if first else ():
        forks = [session.fork() for session in first]
        for fork in forks:
            fork.memory = registry.make("memory", name)
        yield name, forks, answers(engines[False], questions(forks))
        for fork in forks:
            fork.close()
    if first and WATCHING in searching:
        yield TOLD, list(first), answers(engines[False], questions(first, first[0].memory))


def line(name: str, session: Session, outcomes: Sequence[Outcome], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of one memory on one stream."""
    said = [
        {
            "task": o.query.task,
            "age_s": o.query.meta["age_s"],
            "worth": worth(o),
            "want": o.query.answer,
            "said": o.replies[0].text,
            "tokens": o.replies[0].meta["usage"].context_tokens,
        }
        for o in outcomes
    ]
    stats = session.stats()
    return {"bench": "half_hour", "memory": name, "frames": stats.frames, "bytes": stats.memory_bytes, **facts} | {
        "answers": said
    }


def work(number: int, given: argparse.Namespace, lock: Any, deadline: float) -> None:
    """One process: every n-th job, which is a group of streams under a group of memories."""
    torch.set_num_threads(1)
    device = given.devices.split(",")[number % len(given.devices.split(","))]
    names, longest = given.models.split(","), 0.0
    starts = range(given.first_seed, given.first_seed + given.clips, given.together)
    jobs = [(start, name, *group) for start in starts for name in names for group in given.groups]
    card = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    for start, name, group, searching in jobs[number :: given.workers]:
        began = time.monotonic()
        if began + longest > deadline:
            break
        model = models.load(name, device=device, dtype=given.dtype)
        eyes = {"encoder": given.encoder, "compressor": given.compressor}
        engines = {held: Engine(model, **eyes, memory=LATE if held else WATCHING) for held in (False, True)}
        lengths = given.split, given.minutes, given.early_minutes, given.per_hour, given.present
        seeds = range(start, min(start + given.together, starts.stop))
        streams = [Stream.of_seed(seed, *lengths) for seed in seeds]
        print(f"{len(streams)} streams are made, {time.monotonic() - began:.0f} s; {group[0]} begins", flush=True)
        sessions = watch(streams, engines, group, given.fps)
        facts = {
            "model": name, "split": given.split, "minutes": given.minutes, "fps": given.fps, "encoder": given.encoder,
            "compressor": given.compressor, "device": card,
            "commit": provenance.commit(), "versions": provenance.versions(),
        }  # fmt: skip
        for memory, some, outcomes in ask_all(streams, sessions, engines, searching):
            rows, at = [], 0
            for stream, session in zip(streams, some, strict=True):
                own = outcomes[at : at + len(stream.queries)]
                at += len(own)
                rows.append(line(memory, session, own, facts | {"stream": stream.episode.seed}))
            with lock, Path(given.out).open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)
            worths = [answer["worth"] for row in rows for answer in row["answers"]]
            tokens = sum(answer["tokens"] for row in rows for answer in row["answers"]) / len(worths)
            print(f"  {memory:76} {sum(worths) / len(worths):.3f} {tokens:6.0f} tokens, {name}", flush=True)
        longest = max(longest, 1.1 * (time.monotonic() - began))
        print(f"{len(streams)} streams, {name}, {device}, {group[0]}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="pocket-aware", help="names, with commas between; streams take turns")
    parser.add_argument("--clips", type=int, default=6, help="streams")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first stream")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--minutes", type=float, default=35.0, help="length of a stream")
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second of stream")
    parser.add_argument("--early-minutes", type=float, default=5.0, help="minutes that the needles lie in")
    parser.add_argument("--per-hour", type=float, default=8.0, help="needles an hour of stream, 16 in all at most")
    parser.add_argument("--present", type=int, default=8, help="questions about what is there at the end")
    parser.add_argument("--encoder", default="full", help="the same for all memories")
    parser.add_argument("--compressor", default="stc_pruner", help="the same for all memories")
    parser.add_argument("--also", action="append", default=[], metavar="MEMORY", help="ask under this one too")
    parser.add_argument("--only", action="store_true", help="only the memories of --also, and the controls")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--devices", default="auto", help="for example cuda:0,cuda:0,cpu: workers take them in turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--together", type=int, default=1, help="streams that a process watches in the same steps")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no stream that would end later")
    parser.add_argument("--out", default="half_hour.jsonl")
    given = parser.parse_args()
    kept = {name: registry.make("memory", name) for name in given.also}
    searched = [name for name in kept if name.startswith(("rekv", "select_recent", "streamingtom"))]
    beside = [(name,) for name in kept if name not in searched]
    searching = [WATCHING, *(() if given.only else SEARCHING[1:]), *searched]
    parts = [searching[:5], *([searching[5:]] if searching[5:] else [])]
    given.groups = [((WATCHING,), part) for part in parts]
    given.groups += [(group, ()) for group in [*([(LATE,)] if given.only else BESIDE), *beside]]
    deadline, spawn = time.monotonic() + given.seconds, multiprocessing.get_context("spawn")
    lock = spawn.Lock()
    workers = [spawn.Process(target=work, args=(n, given, lock, deadline)) for n in range(given.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed: see above; what the others wrote stands")


if __name__ == "__main__":
    main()
