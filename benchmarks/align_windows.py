"""Windows of a depth reconstructor joined by one scale a depth layer, against one scale and shift for all (LASER).

    python -m benchmarks.align_windows --seeds 8 --out rows.jsonl

There is no reconstructor in this package: its windows are simulated. A camera moves for 500 frames past things that lie
in three layers of depth. Every window of 16 frames is told in units of its own and each of its layers with an error of
scale of its own, which is what LASER ("Layer-wise Scale Alignment for Training-free Streaming 4D Reconstruction", arXiv
2512.13680) finds in windows of offline models. The first window, in whose units all is told, has no such errors.

`Layered` keeps the last window's overlap and the scales, no more. What the paper adds and this does not have: layers
found in the depth (here they are told, two in a hundred points wrongly), rotations (the windows' axes agree), loops.
"""

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onlooker.core import provenance

REALISES = ("laser",)
FRAMES, WINDOW, OVERLAP, LAYERS = 500, 16, 4, 3
ROWS, COLS = 12, 16
DEPTHS = (2.0, 5.0, 14.0)
SPEED = 0.05
SCALE_ERROR, NOISE, MISLABELLED = 0.1, 0.02, 0.02
"""Noise is a share of a depth, and of what the camera moves in a frame."""


@dataclass(frozen=True)
class Window:
    """What a reconstructor says of some frames, in units of its own."""

    depths: np.ndarray
    """(frames, rows, cols)."""
    layers: np.ndarray
    """(frames, rows, cols), which layer a point lies in."""
    centres: np.ndarray
    """(frames, 3), where the camera was, from its first frame on."""

    def points(self) -> np.ndarray:
        """(frames, rows, cols, 3) points in the window's axes."""
        return self.centres[:, None, None] + self.depths[..., None] * RAYS


def _rays() -> np.ndarray:
    rows, cols = np.meshgrid(np.linspace(-0.5, 0.5, ROWS), np.linspace(-0.7, 0.7, COLS), indexing="ij")
    return np.stack([cols, rows, np.ones_like(rows)], axis=-1)


RAYS = _rays()
"""(rows, cols, 3) of a pinhole camera, one unit deep."""


def world(rng: np.random.Generator) -> Window:
    """The truth: depths and places of all frames."""
    times = np.arange(FRAMES)[:, None, None]
    rows, cols = np.meshgrid(np.arange(ROWS), np.arange(COLS), indexing="ij")
    layers = np.clip((ROWS - 1 - rows + np.round(2 * np.sin(cols / 3 + times / 40))) * LAYERS // ROWS, 0, LAYERS - 1)
    phases = rng.uniform(0, 2 * np.pi, LAYERS)
    waves = 1 + 0.15 * np.sin(cols / 4 + times / 25 + phases[layers.astype(int)])
    speeds = SPEED * (1 + 0.4 * np.sin(np.arange(FRAMES)[:, None] / 30 + rng.uniform(0, 2 * np.pi, 3)))
    return Window(np.asarray(DEPTHS)[layers.astype(int)] * waves, layers.astype(int), np.cumsum(speeds, axis=0))


def windows(truth: Window, rng: np.random.Generator) -> Iterator[Window]:
    """The truth as a reconstructor tells it, one window after another."""
    for first in range(0, FRAMES - OVERLAP, WINDOW - OVERLAP):
        part = slice(first, first + WINDOW)
        unit, errors = np.exp(rng.normal(0, SCALE_ERROR)), np.exp(rng.normal(0, SCALE_ERROR, LAYERS))
        errors = errors if first else np.ones(LAYERS)
        layers, depths = truth.layers[part], truth.depths[part]
        noisy = depths * unit * errors[layers] * np.exp(rng.normal(0, NOISE, depths.shape))
        wrong = rng.random(layers.shape) < MISLABELLED
        moved = (truth.centres[part] - truth.centres[first]) * unit
        shaken = moved + rng.normal(0, NOISE * SPEED, moved.shape) * unit
        yield Window(noisy, np.where(wrong, rng.integers(0, LAYERS, layers.shape), layers), shaken)


@dataclass
class Joined(ABC):
    """Windows in the units of the first. Held is the overlap that the next one is joined by, and the last scales."""

    overlap: Window | None = None
    scales: np.ndarray = field(default_factory=lambda: np.ones(LAYERS))

    def add(self, window: Window) -> Window:
        """The window in the units of the first."""
        joined = window if self.overlap is None else self._join(self.overlap, window)
        self.overlap = Window(*(part[-OVERLAP:].copy() for part in (joined.depths, joined.layers, joined.centres)))
        return joined

    @abstractmethod
    def _join(self, before: Window, window: Window) -> Window:
        """The window in those units, by the overlap with the one before."""


class OneScale(Joined):
    """One scale and shift for all points, by least squares with Huber weights: Sim(3) where axes agree."""

    def _join(self, before: Window, window: Window) -> Window:
        ours, theirs = before.points().reshape(-1, 3), window.points()[:OVERLAP].reshape(-1, 3)
        weights, scale, shift = np.ones(len(ours)), 1.0, np.zeros(3)
        for _ in range(10):
            share = weights / weights.sum()
            mean, other = share @ ours, share @ theirs
            a, b = ours - mean, theirs - other
            scale = float((share @ (a * b).sum(-1)) / (share @ (b * b).sum(-1)))
            shift = mean - scale * other
            off = np.linalg.norm(ours - scale * theirs - shift, axis=-1)
            weights = np.minimum(1.0, (1.345 * np.median(off) + 1e-9) / np.maximum(off, 1e-9))
        self.scales = np.full(LAYERS, scale)
        return Window(window.depths * scale, window.layers, window.centres * scale + shift)


class Layered(Joined):
    """A scale for each layer (the median ratio of its depths in the overlap), and one for the way of the camera."""

    def _join(self, before: Window, window: Window) -> Window:
        there, same = window.layers[:OVERLAP], before.layers == window.layers[:OVERLAP]
        ratios = before.depths / window.depths[:OVERLAP]
        # A layer that the overlap does not show goes on with the scale it had.
        self.scales = np.array([
            np.median(ratios[same & (there == layer)]) if (same & (there == layer)).any() else self.scales[layer]
            for layer in range(LAYERS)
        ])  # fmt: skip
        ours, theirs = (c[:OVERLAP] - c[:OVERLAP].mean(0) for c in (before.centres, window.centres))
        way = float(np.sqrt((ours**2).sum() / (theirs**2).sum()))
        shift = before.centres.mean(0) - way * window.centres[:OVERLAP].mean(0)
        return Window(window.depths * self.scales[window.layers], window.layers, window.centres * way + shift)


def errors(seed: int, joined: Joined) -> tuple[float, float]:
    """Of a joined stream: how far the camera's way is off (root mean square, after one scale and shift of the whole),
    and by what share depths are (mean, after one scale)."""
    rng = np.random.default_rng(seed)
    truth, depths, centres = world(rng), [], []
    for window in windows(truth, rng):
        found = joined.add(window)
        first = OVERLAP if depths else 0
        depths.append(found.depths[first:])
        centres.append(found.centres[first:])
    depth, way = np.concatenate(depths), np.concatenate(centres)
    a, b = truth.centres - truth.centres.mean(0), way - way.mean(0)
    off = a - b * (a * b).sum() / (b * b).sum()
    share = depth * np.median(truth.depths / depth) / truth.depths - 1
    return float(np.sqrt((off**2).sum(-1).mean())), float(np.abs(share).mean())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    facts = {"bench": "align_windows", "commit": provenance.commit(), "versions": provenance.versions()}
    rows = []
    for seed in range(given.seeds):
        one, layered = errors(seed, OneScale()), errors(seed, Layered())
        names = ("way_off", "depth_off", "way_off_one_scale", "depth_off_one_scale")
        rows.append({"seed": seed} | dict(zip(names, (round(e, 4) for e in (*layered, *one)), strict=True)) | facts)
        print(rows[-1])
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
