"""What happened half an hour ago: memories compared on streams of 31 minutes.

    python -m benchmarks.half_hour --clips 8

Every clip shows a needle (a shape that appears exactly once) in its first minute and is asked about it at its end: did
it ever appear (as often about something that never did), and when it came and went. All memories see the same tokens.
"""

import argparse
import dataclasses
import json
import random
import time

from onlooker import models
from onlooker.core import registry
from onlooker.core.records import QueryRecord
from onlooker.engine import Engine
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.score import by_task, difference, score
from onlooker.world import WorldSettings, make_episode
from onlooker.world.export import video_record

# With 21 tokens a frame, an answer sees about 1,440 tokens of video in each of them.
MEMORIES = (
    "rekv:topk=64,recent=4,window_tokens=1440",
    "sliding_window:window_tokens=1440",
    "last_frames:frames=68",
)


def clip(seed: int, minutes: float, early_s: float) -> Item:
    """One long stream with two questions about its needle, one about its times, and one about what never was."""
    episode = make_episode(
        seed,
        "test",
        duration_s=minutes * 60,
        kind="long",
        settings=WorldSettings(needle_depth=early_s / 60 / minutes / 2),
    )
    found: dict[str, QueryRecord] = {}
    end = episode.duration_s - 1.0
    for attempt in range(60):
        for query in episode.questions(8, rng_seed=attempt, tasks=["ever", "when"], between_s=(end - 1, end)):
            early = bool(query.evidence) and max(b for _, b in query.evidence) <= early_s
            kind = f"{query.task} {query.answer if query.task == 'ever' else query.question.split()[-1]}"
            if (early and query.answer != "no" and "word" not in query.question) or query.answer == "no":
                found.setdefault(kind, dataclasses.replace(query, id=f"{query.id}-{attempt}"))
        if len(found) >= 4:
            break
    queries = random.Random(seed).sample(sorted(found.values(), key=lambda q: q.question), min(4, len(found)))
    frames = lambda fps: episode.frames(fps=fps, size=(128, 128))  # noqa: E731
    return Item(video_record(episode, fps=1.0), tuple(queries), frames)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-aware")
    parser.add_argument("--clips", type=int, default=8, help="streams of half an hour, four questions each")
    parser.add_argument("--minutes", type=float, default=31.0, help="length of a stream")
    parser.add_argument("--fps", type=float, default=1.0, help="frames looked at per second")
    parser.add_argument("--encoder", default="stc_cacher", help="the same for all memories")
    parser.add_argument("--compressor", default="stc_pruner", help="the same for all memories")
    given = parser.parse_args()
    model = models.load(given.model)
    items = [clip(seed, given.minutes, 60.0) for seed in range(given.clips)]
    rows, outcomes = [], {}
    for memory in MEMORIES:
        began = time.perf_counter()
        engine = Engine(model, encoder=given.encoder, compressor=given.compressor, memory=memory)
        outcomes[memory] = replay(engine, items, fps=given.fps, parallel=given.clips)
        whole = score(outcomes[memory])
        row = {"memory": registry.describe(engine.memory)} | dataclasses.asdict(whole)
        row["tasks"] = {name: round(part.accuracy, 3) for name, part in by_task(outcomes[memory]).items()}
        replies = [o.reply for o in outcomes[memory] if o.reply]
        row["context_tokens"] = round(sum(r.meta["context_tokens"] for r in replies) / max(1, len(replies)))
        row["seconds"] = round(time.perf_counter() - began)
        rows.append(row)
        print(f"{row['memory']:45} {whole.accuracy:.3f} [{whole.low:.3f}, {whole.high:.3f}] {row['tasks']}", flush=True)
    gap = difference(outcomes[MEMORIES[0]], outcomes[MEMORIES[1]])
    print(f"rekv minus sliding_window: {gap.gap:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]: {gap.verdict}")
    print(json.dumps({"bench": "half_hour", "rows": rows, "rekv_minus_window": dataclasses.asdict(gap)} | vars(given)))


if __name__ == "__main__":
    main()
