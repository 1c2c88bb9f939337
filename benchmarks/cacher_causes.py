"""What the published Cacher loses where nothing but things changes, and by which of its steps.

    python -m benchmarks.cacher_causes --clips 40 --workers 3 --out rows.jsonl

The same clips of Pocket World (24 seconds, eight questions each, held-out seeds) in three worlds: as it is (`all`),
with a ground that stands still (`still_ground`), and with neither camera, noise nor light either (`things`). On each
the forms of `FORMS`, every one against the dense tower on the same questions: `more` computes half of the tokens anew,
`true` those where a thing is or was since the reference (by ground truth), `attention` and `mlp` reuse one branch only,
`patch` chooses the same tokens in all layers by their pixels, `random` draws them, `often` computes every second frame
whole. `age` counts what was lost by how long ago the newest whole frame was when the question came.
"""

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.codec_cacher import Drawn, card_of
from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.codec import CodecRecord
from onlooker.core.frame import Frame
from onlooker.encode.full import Full
from onlooker.engine import Engine
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.score import worth
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import TASKS, WorldSettings, make_episode

SEED, CLIP_S, INTERVAL = 2**34, 24.0, 4
STILL = WorldSettings(drift=(0.0, 0.0))
WORLDS = {
    "all": WorldSettings(),
    "still_ground": STILL,
    "things": replace(STILL, camera_share=0.0, noise_sigma=(0.0, 0.0), light_swing=0.0, cut_share=0.0),
}
FORMS = {
    "published": "",
    "more": ",recompute_ratio=0.5",
    "true": ",selection=codec",
    "attention": ",reused=attention",
    "mlp": ",reused=mlp",
    "patch": ",selection=patch",
    "random": "",
    "often": "",
}
CELLS = 32
"""Cells along a side on which it is told where things are."""
TOLD = 0.01
"""How far a wholly covered cell is said to have moved: too little to be looked for elsewhere."""


def clips(world: str, count: int) -> list[Item]:
    """The clips of a world with their frames, each told where things are or just were."""
    found = []
    for seed in range(SEED, SEED + count):
        names = list(TASKS)
        episode = make_episode(seed, "test", duration_s=CLIP_S, settings=WORLDS[world])
        item = as_item(episode, by_category(episode, [names[(seed * 8 + k) % len(names)] for k in range(8)]), "causes")
        frames = told(item)
        found.append(replace(item, open=lambda fps, frames=frames: iter(frames)))
    return found


def told(item: Item) -> list[Frame]:
    """Frames that say, in the place of a video's encoder, which cells show a thing, or did in the frame before."""
    assert item.cover is not None
    frames, before = [], np.zeros((CELLS, CELLS), dtype=np.float32)
    for frame in item.open(1.0):
        now = item.cover(frame.time_s, (CELLS, CELLS)).astype(np.float32)
        motion = np.stack([TOLD * np.maximum(now, before), np.zeros_like(now)], axis=-1)
        record = CodecRecord("P", 1, 0, 1, motion, np.ones_like(now))
        frames.append(Frame(frame.image, frame.time_s, codec=record))
        before = now
    return frames


def encoder_of(form: str) -> Any:
    """The method under a form's settings."""
    if form == "dense":
        return Full()
    interval = 2 if form == "often" else INTERVAL
    if form == "random":
        return Drawn(interval=interval)
    return registry.make("encoder", f"stc_published:interval={interval},{FORMS[form]}".replace(",,", ",").rstrip(","))


def asked(world: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All forms in one world."""
    torch.set_num_threads(1)
    model, items = models.load(options.model, dtype="float32"), clips(world, options.clips)
    dense: list[float] = []
    for form in ("dense", *(options.forms.split(",") if options.forms else FORMS)):
        engine = Engine(model, encoder=encoder_of(form), compressor="identity", memory="full")
        outcomes = replay(engine, items, parallel=len(items))
        marks = [worth(outcome) or 0.0 for outcome in outcomes]
        dense = dense or marks
        ages, kinds = defaultdict(list[float]), defaultdict(list[float])
        for outcome, mark, best in zip(outcomes, marks, dense, strict=True):
            ages[int(outcome.query.ask_time) % INTERVAL].append(best - mark)
            kinds[outcome.query.task].append(best - mark)
        yield {
            "what": "causes", "world": world, "form": form, "clips": len(items), "questions": len(marks),
            "right": round(_mean(marks), 4), "lost": round(_mean(dense) - _mean(marks), 4), "worth": marks,
            "age": {str(age): [round(_mean(each), 4), len(each)] for age, each in sorted(ages.items())},
            "tasks": {task: [round(_mean(each), 4), len(each)] for task, each in sorted(kinds.items())},
            "model": options.model, "card": card_of(model.spec.device),
        }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def one(world: str, options: argparse.Namespace) -> None:
    """A world's rows, each written down when it is there."""
    for row in asked(world, options):
        row |= {"commit": provenance.commit(), "versions": provenance.versions()}
        print(json.dumps({k: v for k, v in row.items() if k != "worth"}), flush=True)
        with Path(options.out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1, help="processes, a world each")
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--forms", default="", help="some forms only, with commas between")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    worlds = options.worlds.split(",")
    if options.workers == 1:
        for world in worlds:
            one(world, options)
        return
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(one, world, options) for world in worlds]):
            done.result()


if __name__ == "__main__":
    main()
