"""Training-free variants of STC-Cacher at equal cost, on validation clips of Pocket World, through the engine.

    python -m benchmarks.cacher_variants --clips 36

One JSON line per variant: overall accuracy with its 95 % interval and accuracy by category. Nothing but the encoder
differs between them: all tokens are kept and full memory is used.
"""

import argparse
import dataclasses
import json
import time

from onlooker import models
from onlooker.engine import Engine
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.score import by_task, score
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import TASKS, make_episode

PUBLISHED = "stc_published:interval=4,recompute_ratio=0.25"
VARIANTS = (
    "", "selection=patch,reference=rolling", "reference=rolling", "correct_stale=0.5", "selection=patch",
    "feature=hidden", "dense_tail_layers=1", "refresh_on_cut=0.95",
)  # fmt: skip


def clips(count: int) -> list[Item]:
    """Validation clips of 24 seconds, eight questions each, all categories in turn."""
    names = list(TASKS)
    items = []
    for seed in range(count):
        episode = make_episode(seed, "validation", duration_s=24.0)
        items.append(
            as_item(episode, by_category(episode, [names[(seed * 8 + k) % 12] for k in range(8)]), "pocketworld")
        )
    return items


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--clips", type=int, default=36)
    parser.add_argument("--variants", nargs="*", default=VARIANTS, help="settings beside the published ones")
    given = parser.parse_args()
    model, items = models.load(given.model), clips(given.clips)
    for variant in given.variants:
        began = time.perf_counter()
        encoder = f"{PUBLISHED},{variant}" if variant else PUBLISHED
        outcomes = replay(Engine(model, encoder=encoder, compressor="identity", memory="full"), items, parallel=12)
        tasks = {name: round(part.accuracy, 3) for name, part in by_task(outcomes).items()}
        row = {"encoder": encoder} | dataclasses.asdict(score(outcomes)) | {"tasks": tasks}
        print(json.dumps(row | {"seconds": round(time.perf_counter() - began)}), flush=True)


if __name__ == "__main__":
    main()
