"""What happened half an hour ago: memories compared on streams of 35 minutes.

    python -m benchmarks.half_hour --clips 6

In the first five minutes of every stream things appear that never come back (needles); half an hour later it is asked
of each whether it ever appeared, as often about something that never did (so that a constant answer is right in half of
the cases), and when it came and left. A stream is watched once, through a window, with everything older parked; at its
end forks of that one session answer under every memory, so that all of them saw the same. To a sliding window, what is
parked is forgotten. Memories that hold tokens (`--also flash_vstream`) watch it apart from the others.

Beside them: `last_frames`, which watches the last two minutes only, since it reads no more; a search that is told where
the evidence lies; and full memory over the 48 frames around each needle, asked at once: what the model can do at all.
"""

import argparse
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from onlooker import models
from onlooker.core import registry
from onlooker.core.contracts import MemoryPolicy
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.core.spans import Plan, Recall, Span
from onlooker.core.state import StreamState
from onlooker.engine import Engine, Session
from onlooker.evals.replay import Outcome
from onlooker.evals.score import by_task, difference, score
from onlooker.world import Episode, WorldSettings, make_episode
from onlooker.world.episode import Split

FRAMES = 48
"""Frames in view of every answer: the longest clips that the pocket models were trained on."""
TOKENS = FRAMES * 21
"""The same in tokens, at the 21 a frame (two of them its time) that STC-Pruner leaves with its defaults."""
MEMORIES = (
    f"rekv:topk={FRAMES - 5},first=1,recent=4,score=shares,window_tokens={TOKENS}",
    f"rekv:topk={FRAMES - 4},recent=4,window_tokens={TOKENS}",
    f"sliding_window:window_tokens={TOKENS}",
)
LAST = f"last_frames:frames={FRAMES}"
LATE_S = 120
TOLD, AT_ONCE = "told where to look", f"full, {FRAMES} frames, asked at once"


@dataclass(frozen=True)
class Told(MemoryPolicy):
    """Recalls what lies within `margin_s` of the evidence, or evenly spread blocks where all is evidence, besides the
    first and the newest: a search that cannot fail, over what another memory keeps."""

    keeps: MemoryPolicy
    evidence: tuple[tuple[float, float], ...]
    margin_s: float = 4.0

    def new_state(self) -> StreamState:
        """That of the memory that keeps the blocks."""
        return self.keeps.new_state()

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """That of the memory that keeps the blocks."""
        return self.keeps.plan(spans, state)

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """The prefix, the first block, the evidence, the four newest."""
        near = [
            span
            for span in spans[2:-4]
            if any(a - self.margin_s <= span.start_s <= b + self.margin_s for a, b in self.evidence)
        ]
        step = -(-len(near) // (FRAMES - 5))
        return Recall(tuple(span.id for span in [*spans[:2], *near[:: max(1, step)], *spans[-4:]]))


@dataclass(frozen=True)
class Stream:
    """One long stream and what is asked at its end."""

    episode: Episode
    queries: tuple[QueryRecord, ...]

    @classmethod
    def of_seed(cls, seed: int, split: Split, minutes: float, early_minutes: float) -> "Stream":
        """The stream of this seed, always the same."""
        settings = WorldSettings(needle_until=early_minutes / minutes)
        episode = make_episode(seed, split, duration_s=minutes * 60, kind="long", settings=settings)
        rng, needles = random.Random(seed), set(episode.needles)
        found: dict[tuple[str, ...], QueryRecord] = {}
        for _ in range(200):
            for task in ("ever", "when"):
                query = episode.ask(task, episode.duration_s - 0.5, rng)
                if query and set(query.meta["sprites"]) <= needles:
                    words = [str(query.meta.get(name, "")) for name in ("thing", "a_thing", "word")]
                    found.setdefault((query.meta["form"], query.answer, *words), query)
        queries = [query for key, query in sorted(found.items()) if query.answer != "no"]
        for form in ("ever_thing", "ever_word"):
            absent = [query for key, query in sorted(found.items()) if key[:2] == (form, "no")]
            queries += absent[: sum(query.meta["form"] == form for query in queries)]
        named = [dataclasses.replace(query, id=f"{episode.id}-{n:03d}") for n, query in enumerate(queries)]
        return cls(episode, tuple(named))

    def frames(self) -> Iterator[Frame]:
        """One a second."""
        return self.episode.frames(fps=1.0, size=(128, 128))

    def moments(self) -> dict[float, list[QueryRecord]]:
        """When to ask full memory: a little after each needle has gone; about what never was, after the first."""
        out: dict[float, list[QueryRecord]] = {}
        for query in self.queries:
            needle = (*query.meta["sprites"], self.episode.needles[0])[0]
            out.setdefault(self.episode.sprites[needle].end_s + 3.0, []).append(query)
        return out


def answer(session: Session, query: QueryRecord) -> Outcome:
    """What a session says to a question."""
    said = session.ask(query.question, max_new_tokens=6)
    meta = {"context_tokens": said.usage.context_tokens}
    return Outcome(query, (ReplyRecord(query.id, query.ask_time, said.text, "answer", meta=meta),))


def ask_at_end(
    stream: Stream, watching: Engine, late: Engine, memories: Sequence[str], apart: Mapping[str, Engine]
) -> dict[str, list[Outcome]]:
    """Watch a stream and put its questions under every memory; those that hold tokens watch it apart."""
    episode, outcomes = stream.episode, {}
    with ExitStack() as stack:
        session, newest = stack.enter_context(watching.open()), stack.enter_context(late.open())
        alone = {name: stack.enter_context(engine.open()) for name, engine in apart.items()}
        for frame in stream.frames():
            for one in (session, *alone.values()):
                one.push(frame)
            if frame.time_s >= episode.duration_s - LATE_S:
                newest.push(frame)
        for name, one in alone.items():
            outcomes[name] = [answer(one, query) for query in stream.queries]
        for memory in memories:
            with session.fork() as fork:
                fork.memory = registry.make("memory", memory)
                outcomes[memory] = [answer(fork, query) for query in stream.queries]
        outcomes[LAST] = [answer(newest, query) for query in stream.queries]
        with session.fork() as fork:
            outcomes[TOLD] = []
            for query in stream.queries:
                fork.memory = Told(session.memory, query.evidence)
                outcomes[TOLD].append(answer(fork, query))
    return outcomes


def ask_at_once(stream: Stream, full: Engine) -> list[Outcome]:
    """Full memory over the frames before each moment, asked there."""
    outcomes, moments = [], stream.moments()
    early = list(itertools.takewhile(lambda frame: frame.time_s <= max(moments), stream.frames()))
    for moment_s, queries in moments.items():
        with full.open() as session:
            for frame in early:
                if moment_s - FRAMES < frame.time_s <= moment_s:
                    session.push(frame)
            outcomes += [answer(session, query) for query in queries]
    return outcomes


def describe(name: str, outcomes: Sequence[Outcome]) -> dict:
    """One row of the table."""
    whole, tasks = score(outcomes), by_task(outcomes)
    cells = "  ".join(f"{task} {part.accuracy:.3f} [{part.low:.3f}, {part.high:.3f}]" for task, part in tasks.items())
    print(f"{name:72} {whole.accuracy:.3f} [{whole.low:.3f}, {whole.high:.3f}]  {cells}", flush=True)
    replies = [outcome.reply for outcome in outcomes if outcome.reply]
    tokens = round(sum(reply.meta["context_tokens"] for reply in replies) / max(1, len(replies)))
    yes = [o.reply.text == "yes" for o in outcomes if o.reply and o.query.task == "ever"]
    return {
        "memory": name,
        **dataclasses.asdict(whole),
        "tasks": {task: dataclasses.asdict(part) for task, part in tasks.items()},
        "said_yes": round(sum(yes) / max(1, len(yes)), 3),
        "context_tokens": tokens,
    }


def compare(outcomes: Mapping[str, Sequence[Outcome]], other: str) -> dict:
    """Paired differences between the first memory and another one, over all questions and by task."""
    out = {}
    for task in ("all", "ever", "when"):
        ours, theirs = ([o for o in outcomes[name] if task in ("all", o.query.task)] for name in (MEMORIES[0], other))
        gap = difference(ours, theirs)
        print(f"minus {other}, {task}: {gap.gap:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]: {gap.verdict}", flush=True)
        out[task] = dataclasses.asdict(gap) | {"verdict": gap.verdict}
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-aware")
    parser.add_argument("--clips", type=int, default=6, help="streams, nearly twenty questions each")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first stream")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--minutes", type=float, default=35.0, help="length of a stream")
    parser.add_argument("--early-minutes", type=float, default=5.0, help="minutes that the needles lie in")
    parser.add_argument("--encoder", default="stc_cacher", help="the same for all memories")
    parser.add_argument("--compressor", default="stc_pruner", help="the same for all memories")
    parser.add_argument("--also", action="append", default=[], metavar="MEMORY", help="ask under this one too")
    given = parser.parse_args()
    memories = (*MEMORIES, *given.also)
    model, eyes = models.load(given.model), {"encoder": given.encoder, "compressor": given.compressor}
    watching, late, full = (Engine(model, **eyes, memory=memory) for memory in (MEMORIES[0], LAST, "full"))
    hold = [name for name in given.also if registry.make("memory", name).holds_tokens]
    apart = {name: Engine(model, **eyes, memory=name) for name in hold}
    recalling = [name for name in memories if name not in apart]
    outcomes: dict[str, list[Outcome]] = {}
    rows: list[dict] = []
    began = time.perf_counter()
    for seed in range(given.first_seed, given.first_seed + given.clips):
        stream = Stream.of_seed(seed, given.split, given.minutes, given.early_minutes)
        found = ask_at_end(stream, watching, late, recalling, apart) | {AT_ONCE: ask_at_once(stream, full)}
        for name, some in found.items():
            outcomes.setdefault(name, []).extend(some)
        print(f"streams up to {seed}: {time.perf_counter() - began:.0f} s", flush=True)
        rows = [describe(name, some) for name, some in outcomes.items()]
    gaps = {other: compare(outcomes, other) for other in (*memories[1:], LAST)}
    print(json.dumps({"bench": "half_hour", "rows": rows, "rekv_minus": gaps} | vars(given)))


if __name__ == "__main__":
    main()
