"""Clips of Pocket World whose frames are made once, and video files: what the Cacher's tables are measured on."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onlooker.core.frame import Frame
from onlooker.evals.item import Item
from onlooker.evals.suites import pocketworld
from onlooker.evals.suites._episodes import as_item, by_category
from onlooker.world import TASKS, make_episode

CLIP_S = 24
NOISE = 2.0
"""Standard deviation of a still camera's noise, in 256 grey levels."""


def clip_of(seed: int, split: Any, level: str = "L0") -> Item:
    """A clip with eight questions, all categories in turn: 24 seconds, or of a harder level as long as that says."""
    if level != "L0":
        episode, asked = pocketworld.clip(seed, seed, level, split)
        return as_item(episode, asked, f"pocketworld_{level}")
    names, episode = list(TASKS), make_episode(seed, split, duration_s=float(CLIP_S))
    asked = by_category(episode, [names[(seed * 8 + k) % len(names)] for k in range(8)])
    return as_item(episode, asked, "pocketworld")


def make_frames(seed: int, split: Any, folder: str, level: str = "L0") -> int:
    """Put the frames of a clip into the folder."""
    path = _path(seed, split, folder, level)
    if not path.exists():
        images = np.stack([frame.image for frame in clip_of(seed, split, level).open(1.0)])
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, images)
        unfinished.replace(path)
    return seed


def images_of(seed: int, split: str, folder: str, level: str = "L0") -> np.ndarray:
    """The frames of a clip, uint8 `[frames, rows, cols, 3]`."""
    return np.load(_path(seed, split, folder, level), mmap_mode="r")


def with_frames(seed: int, split: str, folder: str, level: str = "L0") -> Item:
    """A clip whose frames are read from the folder."""

    def frames(fps: float) -> Iterator[Frame]:
        assert fps == 1.0
        for number, image in enumerate(images_of(seed, split, folder, level)):
            yield Frame(np.ascontiguousarray(image), float(number))

    item = clip_of(seed, split, level)
    return dataclasses.replace(item, open=frames, cover=None)


def _path(seed: int, split: str, folder: str, level: str) -> Path:
    return Path(folder) / f"{'' if level == 'L0' else level + '_'}{split}_{seed}.npy"


def film(file: str, fps: float, seconds: float) -> Iterator[np.ndarray]:
    """The frames of a video file, uint8 `[rows, cols, 3]`."""
    if file.endswith(".npz"):
        held = np.load(file)
        due = 0.0
        for image, time_s in zip(held["frames"], held["times_s"], strict=True):
            if time_s >= due - 1e-3 and time_s <= seconds:
                due += 1 / fps
                yield image
        return
    from onlooker.video import open_video

    with open_video(file, fps=fps, end_s=seconds) as video:
        yield from (frame.image for frame in video)


def still(folder: str) -> Iterator[np.ndarray]:
    """Two seconds of one picture, each frame with noise of its own."""
    first = next(film(files_of(folder)[0], 1.0, 1.0)).astype(np.float32)
    random = np.random.default_rng(0)
    for _ in range(8):
        yield (first + random.normal(0, NOISE, first.shape)).clip(0, 255).astype(np.uint8)


def files_of(folder: str) -> list[str]:
    """The video files of a folder."""
    found = sorted(str(p) for p in Path(folder).iterdir() if p.suffix in (".npz", ".mp4", ".avi", ".mkv", ".webm"))
    if not found:
        raise SystemExit(f"no video files in {folder}")
    return found
