"""How old is what a memory recalls? Shares of recalled blocks by age, for memories that rank the past by a score.

    python -m benchmarks.recency_bias --streams 3 --minutes 10

A stream of Pocket World is watched once (and once more by each memory that watches its own way), everything older than
the newest blocks parked; questions of all kinds are put to forks of that session under every memory. Of each layer's
recalled blocks it is noted in which tenth of the stream they lie. A memory without a bias would recall from each tenth
as often as the evidence lies there; likeness to the question rises along a stream (MemStream, arXiv 2602.18434), and
favours the late ones. With `level=true` that trend is taken out.
"""

import argparse
import json
from collections.abc import Sequence

from benchmarks.long_streams import Noted
from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.records import QueryRecord
from onlooker.engine import Engine
from onlooker.world import make_episode

PARTS = 10
WATCHING = "rekv:topk=0,recent=1,window_tokens=1000"
MEMORIES = (
    "rekv:topk=16,recent=1",
    "rekv:topk=16,recent=1,level=true",
    "rekv:topk=16,recent=1,score=shares",
    "rekv:topk=16,recent=1,score=shares,level=true",
    "select_recent:recent=1,budget=16,bar=0.0",
    "select_recent:recent=1,budget=16,bar=0.0,level=true",
)
ALONE = ("video_streaming:clip=16,topk=4", "resv:share=0.5,recent=1,window_tokens=1000")
"""These watch themselves: clips of which parts are forgotten, and an index of every row. Of what `resv` recalls, which
has no scores of blocks, the share of each block's rows counts that the heads see."""


def tenths(times: Sequence[tuple[float, float]], duration_s: float) -> list[float]:
    """Shares of some times, each of some weight, by tenth of the stream."""
    counts = [0.0] * PARTS
    for time_s, weight in times:
        counts[min(PARTS - 1, int(time_s / duration_s * PARTS))] += weight
    return [round(count / (sum(counts) or 1.0), 4) for count in counts]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of a stream")
    parser.add_argument("--questions", type=int, default=12, help="on each stream, at its end")
    parser.add_argument("--encoder", default="full")
    parser.add_argument("--compressor", default="stc_pruner")
    parser.add_argument("--also", action="append", default=[], metavar="MEMORY", help="look at this one too")
    given = parser.parse_args()
    model = models.load(given.model)
    memories, duration_s = (*MEMORIES, *given.also), given.minutes * 60
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*memories, *ALONE)}
    evidence: list[tuple[float, float]] = []
    for seed in range(given.streams):
        episode = make_episode(seed, "test", duration_s=duration_s, kind="long")
        between_s = (duration_s - 1.5, duration_s - 0.5)
        queries: Sequence[QueryRecord] = episode.questions(given.questions, rng_seed=seed, between_s=between_s)
        evidence += [((start + end) / 2, 1.0) for query in queries for start, end in query.evidence]
        for watching, asked in ((WATCHING, memories), *((name, (name,)) for name in ALONE)):
            watcher = Engine(model, encoder=given.encoder, compressor=given.compressor, memory=watching)
            with watcher.open() as session:
                for frame in episode.frames(fps=1.0, size=(128, 128)):
                    session.push(frame)
                for name in asked:
                    with session.fork() as fork:
                        fork.memory = Noted(
                            registry.make("memory", name), times[name], name.startswith("video_streaming")
                        )
                        for query in queries:
                            fork.ask(query.question, max_new_tokens=1)
        print(f"{seed + 1} of {given.streams} streams", flush=True)
    rows = [{"memory": name, "tenths": tenths(some, duration_s), "recalled": len(some)} for name, some in times.items()]
    rows.append({"memory": "evidence", "tenths": tenths(evidence, duration_s), "recalled": len(evidence)})
    for row in rows:
        late = sum(row["tenths"][PARTS // 2 :])
        shares = " ".join(f"{share:.2f}" for share in row["tenths"])
        print(f"{row['memory']:48} {shares}  late half {late:.2f}")
    print(json.dumps({"bench": "recency_bias", "rows": rows, "commit": provenance.commit()} | vars(given)))


if __name__ == "__main__":
    main()
