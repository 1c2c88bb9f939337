"""Bits where the chat looks (Artic): at one bit rate, pictures whose rest is smoothed before they are encoded.

    python -m benchmarks.region_bits --questions 160 --out rows.jsonl

What a sender can do without a say in its encoder: all but the regions that questions are about is smoothed, so that an
encoder at a fixed rate spends its bits on them. Clips of level L2 at 256 pixels and 4 pictures a second go through
H.264 at as many bits a pixel as 200 kbit/s are at 576 lines and 30 pictures a second; the model looks at one picture a
second of what comes out. The regions are the things that are shown, with `MARGIN` pixels around them, as the world
knows them: what a chat would ask about, at its best. Sealed clips of their own; both ways, the same questions. A row
with the gap, its interval and the bits that each way took.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from onlooker.core import provenance
from onlooker.core.frame import Frame
from onlooker.evals.item import Item, Reading
from onlooker.evals.replay import replay
from onlooker.evals.run_settings import RunSettings, from_dict, make_system
from onlooker.evals.score import worth
from onlooker.evals.statistics import paired_gap
from onlooker.evals.suites import pocketworld
from onlooker.evals.suites._episodes import as_item
from onlooker.world import Episode, rasterise, render_tables
from onlooker.world.transport import coded, decoded

REALISES = ("artic",)
LEVEL, SIDE, FPS, LOOKS = "L2", 256, 4, 1.0
BITS_A_PIXEL = 200_000 / (1024 * 576 * 30)
KILOBITS = round(BITS_A_PIXEL * SIDE * SIDE * FPS / 1000)
MARGIN, COARSE = 8, 16
"""Pixels kept around a thing; the rest is as smooth as a picture of so many pixels in one."""


def weighted(episode: Episode, frames: list[Frame]) -> Iterator[Frame]:
    """The frames, smooth where there is nothing to be asked about."""
    times = np.array([[frame.time_s for frame in frames]])
    owner = rasterise(render_tables([episode], times), SIDE, SIDE).owner[0]
    looked = F.max_pool2d((owner >= 0).float()[:, None], 2 * MARGIN + 1, stride=1, padding=MARGIN)
    for frame, here in zip(frames, looked, strict=True):
        image = torch.from_numpy(frame.image.copy()).permute(2, 0, 1)[None].float()
        small = F.avg_pool2d(image, COARSE)
        smooth = F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)
        mixed = (image * here + smooth * (1 - here))[0].permute(1, 2, 0)
        yield dataclasses.replace(frame, image=mixed.round().clamp(0, 255).byte().numpy())


def sent(episode: Episode, kilobits: int) -> dict[str, tuple[int, list[Frame]]]:
    """Of each way the bytes on the line, and what is looked at of the pictures that come out."""
    frames = list(episode.frames(fps=FPS, size=(SIDE, SIDE)))
    out = {}
    for way, shown in (("uniform", frames), ("weighted", list(weighted(episode, frames)))):
        file, times = coded(shown, FPS, kilobits)
        out[way] = len(file), list(decoded(file, times))[:: round(FPS / LOOKS)]
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--kilobits", type=int, default=KILOBITS)
    parser.add_argument("--seeds", default="sealed:systems-artic-202611")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    first, left, place = RunSettings(seeds=given.seeds).first_seed, given.questions, 0
    items: dict[str, list[Item]] = {"uniform": [], "weighted": []}
    size, seconds = dict.fromkeys(items, 0), 0.0
    while left > 0:
        episode, queries = pocketworld.clip(first + place, place, LEVEL)
        item = as_item(episode, queries[:left], "pocketworld_region_bits")
        for way, (count, frames) in sent(episode, given.kilobits).items():
            items[way].append(dataclasses.replace(item, open=lambda fps, frames=frames: iter(frames)))
            size[way] += count
        left, place, seconds = left - len(queries[:left]), place + 1, seconds + episode.duration_s
        print(f"{place} clips sent", flush=True)
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for way, some in items.items():
        run = from_dict({
            "model": given.model, "device": given.device, "encoder": "full", "compressor": "identity",
            "memory": "full", "fps": LOOKS,
        })  # fmt: skip
        outcomes = replay(make_system(run, Reading(tuple(some), ())), some, fps=LOOKS, parallel=8, max_new_tokens=8)
        marked = [(o, value) for o in outcomes if (value := worth(o)) is not None]
        found[way] = {o.query.id: (o.query.video, value) for o, value in marked}
        print(f"{way}: {sum(v for _, v in found[way].values()) / len(marked):.3f} of {len(marked)}", flush=True)
    both = sorted(found["uniform"].keys() & found["weighted"].keys())
    right = {way: sum(found[way][n][1] for n in both) / len(both) for way in found}
    gaps = [found["weighted"][n][1] - found["uniform"][n][1] for n in both]
    gap = paired_gap(gaps, [found["uniform"][n][0] for n in both])
    row = {
        "bench": "region_bits", "model": given.model, "level": LEVEL, "side": SIDE, "fps": FPS, "clips": place,
        "kilobits": given.kilobits, "kilobits_sent": {w: round(n * 8 / seconds / 1000, 2) for w, n in size.items()},
        "questions": len(both), "right": right["weighted"], "uniform_right": right["uniform"], "gap": gap.gap,
        "low": gap.low, "high": gap.high, "p": gap.p, "seeds": given.seeds,
        "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
