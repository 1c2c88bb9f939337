"""What happened half an hour ago: memories compared on long streams, at equal tokens read and at equal bytes held.

    python -m benchmarks.half_hour --clips 12 --fps 0.5 --out rows.jsonl

In every stream things appear that never come back, in its first minutes or all along; at its end it is asked of each
whether it ever appeared (as often about something that never did) and when, and what is to be seen now. Every stream is
drawn, encoded and compressed once (`--seen` keeps that for other runs), and then watched under every memory.

`--table tokens`: every memory reads as many tokens at a question as 48 frames have. Memories that only search what is
parked answer from forks of one session which watched through a window and parked everything older; the others watch
themselves. Beside them `full` memory, and a search that is told where the evidence lies: what the model can do at all
when the right frames are found. `--table bytes`: every memory reads no more than that, and settings are chosen to hold
about the bytes of 192 frames' keys and values; what each held is in its rows and in the table.

One line a stream and memory, written when it has answered: every answer with its age, tokens read, bytes held at half
time and at the end. `tools/memories.py` makes tables and pictures of them. Several processes (`--workers`) share the
work, each on one of `--devices` in turn; jobs are memories with `--together` streams in the same steps, controls first.
What is not done within `--seconds` is given up.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.long_streams import WORLDS, Stream, Told
from benchmarks.seen_streams import Remembering, SeenStream, Showing, remembering
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
WINDOW = f"window_tokens={TOKENS}"
SHARES = f"rekv:topk={FRAMES - 5},first=1,recent=4,score=shares,{WINDOW}"
"""Watches through a window and parks everything: the default's form."""
HEADS = f"retrieval_heads:{WINDOW}"
TOLD = "told where to look"
BY_TOKENS = (
    (f"last_frames:frames={FRAMES}",),
    (
        SHARES,
        SHARES,
        HEADS,
        HEADS + ",recent=4",
        TOLD,
        f"select_recent:recent=8,budget={FRAMES - 9}",
        f"rekv:topk={FRAMES - 9},first=1,recent=8,score=shares,{WINDOW}",
        f"sliding_window:{WINDOW}",
        f"rekv:topk={FRAMES - 4},recent=4,{WINDOW}",
        f"streamingtom:recall_tokens={TOKENS},recent=4,{WINDOW}",
        SHARES + ",level=true",
    ),
    ("flash_vstream:form=csm_dam,clusters=26,details=24",),
    ("streamforest:short_frames=24,event_frames=190",),
    ("scene_tiling:scenes=40,frames=8",),
    ("participative:sink_frames=24,recent=8,top_tokens=336,pack=true",),
    ("video_streaming:topk=9",),
    ("carriers:bank=231,tokens=4,pack=true",),
    (f"resv:share=0.5,{WINDOW}",),
    ("full",),
    (f"infinipot_v:{WINDOW},keep_tokens={TOKENS * 3 // 4}",),
    (f"infinipot_v:{WINDOW},keep_tokens={TOKENS * 3 // 4},pack=true",),
    (f"livevlm:keep_tokens={TOKENS * 5 // 3},recent=16,pack=true",),
    ("flash_vstream:form=star,clusters=48",),
    (f"curvestream:frames={FRAMES - 1}",),
    (f"deep_sink:window_frames={FRAMES},sink_frames={FRAMES // 2}",),
    (f"streaming_vlm:vision_s={2 * FRAMES}",),
    ("quickprefill:keep_ratio=0.05",),
)
"""What a job watches under, and under what forks of that are asked; alone: it is asked itself. A codec of parked blocks
stands behind a space."""
BY_BYTES = (
    (f"last_frames:frames={FRAMES}",),
    (f"sliding_window:{WINDOW}",),
    (SHARES + ",max_parked=120",),
    (SHARES + ",max_parked=480 host=int4",),
    (SHARES + ",max_parked=120,thin=true",),
    (SHARES + ",max_parked=480,thin=true host=int4",),
    (HEADS + ",max_parked=120,thin=true",),
    (HEADS + ",max_parked=480,thin=true host=int4",),
    ("livevlm:keep_tokens=2900,recent=16,ratio=0.23,pack=true",),
    (f"infinipot_v:{WINDOW},keep_tokens={TOKENS * 3 // 4},pack=true",),
    ("flash_vstream:form=star,clusters=48",),
    ("streamforest:short_frames=24,event_frames=190",),
    ("scene_tiling:scenes=40,frames=8",),
    (f"curvestream:frames={FRAMES - 1}",),
    ("video_streaming:topk=9,max_parked=130",),
    ("carriers:bank=231,tokens=4,pack=true",),
    (f"deep_sink:window_frames={FRAMES},sink_frames={FRAMES // 2}",),
    ("participative:sink_frames=24,recent=8,top_tokens=336,pack=true",),
)
TABLES = {"tokens": BY_TOKENS, "bytes": BY_BYTES}
AT_ONCE = 96
"""Questions in one step: about those of one stream."""


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


def watch(
    engine: Engine, streams: Sequence[SeenStream], memory: str, deadline: float
) -> tuple[list[Session], list[dict[str, int]]] | None:
    """Watch streams to their ends in the same steps; a session each, and the bytes that each held at half time. None
    when the time is up."""
    eye, sessions = engine.eye, [engine.open() for _ in streams]
    assert isinstance(eye, Remembering)
    half: list[dict[str, int]] = []
    told, length = time.monotonic(), len(streams[0].times_s)
    for number, parts in enumerate(zip(*(stream.frames() for stream in streams), strict=True)):
        for session, stream, (_, tokens) in zip(sessions, streams, parts, strict=True):
            eye.next[session] = tokens, stream.seen
        events = engine.step([(session, frame) for session, (frame, _) in zip(sessions, parts, strict=True)])
        if failed := [event for event in events if isinstance(event, Failed)]:
            raise failed[0].error
        if number == length // 2:
            half = [dict(session.stats().memory_bytes) for session in sessions]
        if (now := time.monotonic()) > deadline:
            return None
        if now - told > 10:
            told = now
            print(f"{parts[0][0].time_s:.0f} s of {len(streams)} streams, {memory}", flush=True)
    return sessions, half


def ask_all(
    streams: Sequence[Stream], sessions: Sequence[Session], engine: Engine, group: Sequence[str]
) -> Iterator[tuple[str, int, list[Outcome]]]:
    """Put every stream's questions under every memory of a group: the memory, the stream's place, what it said."""
    for name in group[1:] or group:
        for place, (stream, session) in enumerate(zip(streams, sessions, strict=True)):
            told = session.memory if name == TOLD else None
            asked = session
            if len(group) > 1 and told is None:
                asked = session.fork()
                asked.memory = registry.make("memory", name)
            yield name, place, answers(engine, [Asked(asked, query, told) for query in stream.queries])
            if asked is not session:
                asked.close()


def line(
    name: str, session: Session, half: Mapping[str, int], outcomes: Sequence[Outcome], facts: Mapping[str, Any]
) -> dict[str, Any]:
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
    held = {"frames": stats.frames, "bytes": stats.memory_bytes, "bytes_at_half": half}
    return {"bench": "half_hour", "memory": name, **held, **facts} | {"answers": said}


@dataclass(frozen=True)
class Job:
    """Streams to watch under one memory."""

    model: str
    seeds: tuple[int, ...]
    group: tuple[str, ...]


class Worker:
    """One process: sees streams, then takes jobs as long as there are any."""

    def __init__(self, number: int, given: argparse.Namespace, deadline: float) -> None:
        torch.set_num_threads(1)
        self.number, self.given, self.deadline = number, given, deadline
        devices = given.devices.split(",")
        self.device = devices[number % len(devices)]
        if self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)  # Triton starts kernels on the current one
        self.card = torch.cuda.get_device_name() if self.device.startswith("cuda") else "cpu"
        self.eyes: dict[str, Any] = {"encoder": given.encoder, "compressor": given.compressor}
        self.eyes |= {"layout": given.layout} if given.layout else {}
        self._models: dict[str, Any] = {}

    def model(self, name: str) -> Any:
        """A model, loaded once."""
        if name not in self._models:
            self._models[name] = models.load(name, device=self.device, dtype=self.given.dtype)
        return self._models[name]

    def stream(self, seed: int) -> Stream:
        """A stream and its questions."""
        given = self.given
        lengths = given.split, given.minutes, given.early_minutes, given.per_hour, given.present
        return Stream.of_seed(seed, *lengths, world=given.world)

    def path(self, model: str, seed: int) -> Path:
        """Where it is kept what was seen of a stream."""
        given = self.given
        lengths = (f"{number:g}" for number in (given.minutes, given.fps, given.early_minutes, given.per_hour))
        seen_by = given.encoder, given.compressor
        parts = (model, given.split, given.world, str(seed), *lengths, *seen_by, given.dtype)
        name = "_".join([*parts, self.device.partition(":")[0]])
        return Path(given.seen) / (re.sub(r"[^\w.=-]", "-", name) + ".safetensors")

    def see(self, model: str, seed: int) -> None:
        """Draw, encode and compress a stream, unless that was done before."""
        path = self.path(model, seed)
        if path.exists():
            return
        began = time.monotonic()
        engine = Engine(self.model(model), memory=Showing(), **self.eyes)
        SeenStream.of(engine, self.stream(seed).frames(self.given.fps)).save(path)
        print(f"stream {seed} seen by {model} in {time.monotonic() - began:.0f} s", flush=True)

    def do(self, job: Job, lock: Any) -> None:
        """Watch the streams, ask, and write rows."""
        began, given = time.monotonic(), self.given
        streams = [self.stream(seed) for seed in job.seeds]
        model = self.model(job.model)
        seen = [SeenStream.load(self.path(job.model, seed), model.spec.device) for seed in job.seeds]
        memory, _, kv = job.group[0].partition(" ")
        engine = remembering(model, memory, kv, **self.eyes)
        watched = watch(engine, seen, job.group[0], self.deadline)
        if watched is None:
            print(f"  given up: {job.group[0]}, streams {job.seeds[0]} and on", flush=True)
            return
        sessions, half = watched
        seconds = time.monotonic() - began
        facts = {
            "table": given.table, "model": job.model, "split": given.split, "world": given.world,
            "minutes": given.minutes, "fps": given.fps, **self.eyes, "device": self.card,
            "commit": provenance.commit(), "versions": provenance.versions(),
        }  # fmt: skip
        worths: dict[str, list[float]] = {}
        for name, place, outcomes in ask_all(streams, sessions, engine, job.group):
            row = line(name, sessions[place], half[place], outcomes, facts | {"stream": streams[place].episode.seed})
            with lock, Path(given.out).open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            so_far = worths.setdefault(name, [])
            so_far += [answer["worth"] for answer in row["answers"]]
            if place == len(streams) - 1:
                print(f"  {name:76} {sum(so_far) / len(so_far):.3f} {job.model}", flush=True)
            if time.monotonic() > self.deadline:
                print(f"  given up: {job.group[0]} behind {name}, stream {job.seeds[place]}", flush=True)
                return
        whole = time.monotonic() - began
        print(
            f"{len(streams)} streams, {job.model}, {job.group[0]}: {seconds:.0f} + {whole - seconds:.0f} s", flush=True
        )


def matching(group: tuple[str, ...], wanted: str) -> tuple[str, ...]:
    """The group with only those that are asked in whose names an expression is found; empty if in none."""
    asked = tuple(name for name in group[1:] or group if re.search(wanted, name))
    return asked if len(group) == 1 or not asked else (group[0], *asked)


def work(number: int, given: argparse.Namespace, jobs: Sequence[Job], begun: Any, ready: Any, deadline: float) -> None:
    """One process."""
    try:
        worker = Worker(number, given, deadline)
        known = sorted({(job.model, seed) for job in jobs for seed in job.seeds})
        for model, seed in known[number :: given.workers]:
            worker.see(model, seed)
    except BaseException:
        ready.abort()
        raise
    ready.wait(max(1.0, deadline - time.monotonic()))
    if number >= (given.watchers or given.workers):
        return
    while time.monotonic() < deadline:
        with begun.get_lock():
            place, begun.value = begun.value, begun.value + 1
        if place >= len(jobs):
            return
        worker.do(jobs[place], begun.get_lock())


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="tokens", help="what is equal")
    parser.add_argument("--models", default="pocket-naive", help="names, with commas between")
    parser.add_argument("--clips", type=int, default=12, help="streams")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first stream")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--world", choices=WORLDS, default="plain", help="hard: small things, noise, a moving camera")
    parser.add_argument("--minutes", type=float, default=35.0, help="length of a stream")
    parser.add_argument("--fps", type=float, default=0.5, help="frames a second of stream")
    parser.add_argument("--early-minutes", type=float, default=35.0, help="minutes that the needles lie in")
    parser.add_argument("--per-hour", type=float, default=27.5, help="needles an hour of stream, 16 in all at most")
    parser.add_argument("--present", type=int, default=8, help="questions about what is there at the end")
    parser.add_argument("--encoder", default="full", help="the same for all memories")
    parser.add_argument("--compressor", default="stc_pruner", help="the same for all memories")
    parser.add_argument("--also", action="append", default=[], metavar="MEMORY", help="watch under this one too")
    parser.add_argument("--fork", action="append", default=[], metavar="MEMORY", help="ask forks under this one too")
    parser.add_argument("--match", default="", help="only memories in whose names this expression is found")
    parser.add_argument("--layout", choices=("keep", "pack"), help="of positions (default: the model's)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--devices", default="auto", help="for example cuda:0,cuda:0,cpu: workers take them in turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--watchers", type=int, default=0, help="of the workers, go on when streams are seen (0: all)")
    parser.add_argument("--together", type=int, default=6, help="streams that are watched in the same steps")
    parser.add_argument("--seconds", type=float, default=3600.0, help="give up what is not done by then")
    parser.add_argument("--seen", default="", help="folder for what is seen of streams (default: one that is deleted)")
    parser.add_argument("--out", default="half_hour.jsonl")
    given = parser.parse_args(argv)
    groups = [matching(group, given.match) for group in TABLES[given.table]]
    groups = [group for group in groups if group]
    groups += [*((name,) for name in given.also), *((SHARES, name) for name in given.fork)]
    for name in {name for group in groups for name in group} - {TOLD}:
        registry.make("memory", name.partition(" ")[0])  # a mistake is told before anything is done
    seeds = range(given.first_seed, given.first_seed + given.clips)
    parts = [tuple(seeds[at : at + given.together]) for at in range(0, given.clips, given.together)]
    names = given.models.split(",")
    jobs = [Job(name, part, group) for group in groups for name in names for part in parts]
    deadline, spawn = time.monotonic() + given.seconds, multiprocessing.get_context("spawn")
    begun, ready = spawn.Value("i", 0), spawn.Barrier(given.workers)
    with tempfile.TemporaryDirectory() as folder:
        given.seen = given.seen or folder
        Path(given.seen).mkdir(parents=True, exist_ok=True)
        workers = [
            spawn.Process(target=work, args=(n, given, jobs, begun, ready, deadline)) for n in range(given.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed: see above; what the others wrote stands")


if __name__ == "__main__":
    main()
