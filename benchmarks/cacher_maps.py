"""Where the forms of the Cacher are wrong: the picture docs/cacher_errors.png.

    python -m benchmarks.cacher_maps --out docs/cacher_errors.png

Six frames of a validation clip of Pocket World, and for each form the error of the tower's output against dense, token
by token, as a share of the mean token's length: black is right, white is wrong by that
length. The first frame is dense.
"""

import argparse
import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from benchmarks.cacher_count import Counted, Tally
from onlooker import models
from onlooker.core import registry
from onlooker.encode.full import Full
from onlooker.world import make_episode

VARIANTS = (
    "stc_published:interval=none",
    "stc_published",
    "stc_published:reference=rolling",
    "stc_cacher",
    "stc_corrected:reference_dtype=int8,tau=0.53",
    "stc_corrected:reference_dtype=int8,tau=0.33,recompute_ratio=1",
)


COLOURS = 128
"""Of the picture: a quarter of the bytes, and nothing to be seen of it."""


@torch.no_grad()
def maps(variant: str, seed: int, seconds: int) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, float]]:
    """Pictures, error maps `[rows, cols]` and means of one form on the first seconds of a clip."""
    model = models.load("pocket", dtype="float32")
    pictures, errors = [], []
    encoder = Counted(registry.make("encoder", variant), Tally())
    state = encoder.new_state()
    for frame in make_episode(seed, "validation", duration_s=24.0).frames(fps=1.0, size=(128, 128)):
        if frame.time_s >= seconds:
            break
        pixels = torch.stack(model.preprocess([frame.image]))
        tower, hidden = model.tower(tuple(pixels.shape[1:])), model.embed_patches(pixels)
        dense = Full().encode(tower, hidden, [state]).hidden[0]
        out = encoder.encode(tower, hidden, [state]).hidden[0]
        pictures.append(frame.image)
        errors.append(((out - dense).norm(dim=-1) / dense.norm(dim=-1).mean()).view(tower.grid).numpy())
    return pictures, errors, encoder.tally.summary()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/cacher_errors.png")
    parser.add_argument("--seed", type=int, default=3, help="validation clip")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 3, 4, 7, 11, 15], help="seconds to show")
    given = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(VARIANTS) + 1
    figure, axes = pyplot.subplots(rows, len(given.frames), figsize=(1.5 * len(given.frames) + 2.6, 1.55 * rows))
    for row, variant in enumerate(VARIANTS, 1):
        pictures, errors, means = maps(variant, given.seed, max(given.frames) + 1)
        for column, number in enumerate(given.frames):
            if row == 1:
                axes[0, column].imshow(pictures[number])
                axes[0, column].set_title(f"{number} s", fontsize=9)
            axes[row, column].imshow(errors[number], cmap="magma", vmin=0, vmax=1)
        name = variant.replace(":", ":\n").replace(",", "\n")
        text = f"{name}\narithmetic {means['arithmetic']:.2f}\nerror {means['error']:.2f}"
        axes[row, 0].set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center")
        print(f"{variant}: arithmetic {means['arithmetic']:.3f}, error {means['error']:.3f}", flush=True)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    figure.tight_layout(pad=0.4)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(Path(given.out), optimize=True)


if __name__ == "__main__":
    main()
