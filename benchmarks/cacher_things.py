"""Where a Cacher is off: on tokens that show a thing, on those that a thing has just left, and on the ground.

    python -m benchmarks.cacher_things --level L2 --clips 8 --first-seed 7000 --out rows.jsonl

What a question asks about lies on a few of the tokens, so the mean error of a tower hardly says what answers
lose. Relative error of the tower's output (root of the mean square, against a mean token's norm) over frames after the
first, by what the world truly shows there, and the arithmetic of those frames at the sizes of SigLIP-so400m. A variant
`truth:SETTINGS` is `stc_corrected:SETTINGS` told where things are and were a frame ago: a bound on choices, no method.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cacher_clips import clip_of
from benchmarks.cacher_count import Counted, Tally
from onlooker import models
from onlooker.core import provenance, registry
from onlooker.core.contracts import Encoded, VideoModel, VisionTower
from onlooker.encode.full import Full
from onlooker.encode.stc_corrected import CorrectedState, STCCorrected
from onlooker.encode.stc_corrected import _step as steps
from onlooker.world import LEVEL_NAMES

C = "reference_dtype=int8,tau=0.4,recompute_ratio"
VARIANTS = (
    "stc_published",
    f"stc_corrected:{C}=0.37",
    f"stc_corrected:{C}=0.37,stands_out=either",
    f"stc_corrected:{C}=0.37,first=unusual,stands_out=either",
    f"stc_corrected:{C}=0.37,stands_out=late",
    f"stc_corrected:{C}=0.37,first=unusual,stands_out=late",
    f"stc_corrected:{C}=0.41,project_tau=0.8,look_every=32,first=unusual,stands_out=late",
    f"truth:{C}=0.37",
    f"truth:{C}=0.2",
)
SHOWN = 0.05
"""Share of a patch that a thing covers, for the patch to show it."""


class _ToldStep(steps.Step):
    """A frame in which those tokens come first that show a thing, or showed it a frame ago."""

    def _weight(self, now: Tensor, then: Tensor) -> Tensor:
        return super()._weight(now, then) + 1e6 * self.method.shown[0]  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Told(STCCorrected):
    """The corrected form with a ground truth."""

    shown: list[Tensor] = field(default_factory=list)
    """One mask of the frame that comes, float32 `[tokens]`."""

    def _reuse(self, tower: VisionTower, hidden: Tensor, seen: Tensor, states: list[CorrectedState]) -> Encoded:
        (state,) = states
        step, x, sketches = _ToldStep(self, tower, state, hidden), hidden, seen
        for number in range(len(tower.layers)):
            x, sketches = step.layer(number, x, sketches)
        shares = step.finish()
        state.age += 1
        return Encoded(x, {}, shares, (False,))


@dataclass
class Seen:
    """A frame as the tower gets it, what it makes of it dense, and which tokens show a thing."""

    tower: VisionTower
    patches: Tensor
    dense: Tensor
    shown: Tensor


@torch.no_grad()
def watched(model: VideoModel, seed: int, level: str) -> list[Seen]:
    """The frames of a validation clip."""
    item, frames = clip_of(seed, "validation", level), []
    assert item.cover is not None, "a clip of the world has a ground truth"
    for frame in item.open(1.0):
        pixels = torch.stack(model.preprocess([np.ascontiguousarray(frame.image)]))
        tower, patches = model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels)
        dense = Full().encode(tower, patches, [Full().new_state()]).hidden[0]
        shown = torch.from_numpy(item.cover(frame.time_s, tower.grid)).flatten() > SHOWN
        frames.append(Seen(tower, patches, dense, shown))
    return frames


def made(variant: str) -> STCCorrected | Any:
    """An encoder, or one that is told."""
    name, _, settings = variant.partition(":")
    if name != "truth":
        return registry.make("encoder", variant)
    method = registry.make("encoder", f"stc_corrected:{settings}")
    return Told(**{one: getattr(method, one) for one in method.__dataclass_fields__})


@torch.no_grad()
def told(clips: Sequence[Sequence[Seen]], variant: str) -> dict[str, Any]:
    """One row."""
    method, tally = made(variant), Tally()
    encoder, squares = Counted(method, tally, compare=False), {"things": [], "left": [], "ground": []}
    for frames in clips:
        state, before = encoder.new_state(), torch.zeros_like(frames[0].shown)
        for number, one in enumerate(frames):
            if isinstance(method, Told):
                method.shown[:] = [(one.shown | before).float()]
            out = encoder.encode(one.tower, one.patches, [state]).hidden[0]
            off = (out - one.dense).norm(dim=-1) / one.dense.norm(dim=-1).mean()
            masks = {"things": one.shown, "left": before & ~one.shown, "ground": ~(one.shown | before)}
            for name, mask in masks.items():
                squares[name] += off[mask].square().tolist() if number else []
            before = one.shown
    errors = {name: round(float(np.mean(some)) ** 0.5, 4) for name, some in squares.items()}
    return {"variant": variant, "arithmetic": round(tally.summary()["arithmetic_after_first"], 4), **errors}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--level", choices=LEVEL_NAMES, default="L2")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=7000)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--out", type=Path, required=True, help="rows are added to it")
    given = parser.parse_args()
    model = models.load(given.model, dtype="float32", device="cpu")
    clips = [watched(model, given.first_seed + n, given.level) for n in range(given.clips)]
    share = float(np.mean([one.shown.float().mean() for frames in clips for one in frames]))
    with given.out.open("a", encoding="utf-8") as file:
        for variant in given.variants:
            row = {"bench": "cacher_things", "level": given.level, "clips": given.clips, "model": given.model}
            row |= told(clips, variant) | {"share_of_things": round(share, 4), "first_seed": given.first_seed}
            row |= {"commit": provenance.commit(), "versions": provenance.versions()}
            file.write(json.dumps(row) + "\n")
            file.flush()
            errors = ", ".join(f"{name} {row[name]:.3f}" for name in ("things", "left", "ground"))
            print(f"{variant}: arithmetic {row['arithmetic']:.3f}, {errors}", flush=True)


if __name__ == "__main__":
    main()
