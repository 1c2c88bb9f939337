"""Work that the runs of a grid share: each clip is drawn once, its ground truth looked up once, its frames go through
the tower once, whatever the number of runs and of processes.

The dense tower's output of a frame depends on the frame alone, so that runs which differ behind the tower only may
share it. It lies on disk, a file for each clip, and is mapped into every process. Times of the stages up to the tower
are then those of a look-up.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import ClipModel, Encoded, EncoderAccelerator, VisionTower
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.encode.full import Full
from onlooker.evals.budgets import tokens_of
from onlooker.evals.item import Item, Reading
from onlooker.evals.run_settings import RunSettings, load_items, model_of

_Row = tuple[Tensor, dict[int, Tensor]]


@dataclass(frozen=True)
class SharedTower(EncoderAccelerator):
    """The dense tower over frames some of which are known: `rows` are hidden states and taps by frame."""

    rows: dict[str, _Row] = field(compare=False, repr=False)
    learns: bool = False
    """Whether new frames become known."""

    def new_state(self) -> StreamState:
        """A dense tower remembers nothing of a stream."""
        return StreamState()

    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """Known frames are looked up, the others go through the tower together."""
        keys = [_key(tower, row) for row in hidden.cpu()]
        rows = {k: row for k in keys if (row := self.rows.get(k)) is not None and tower.tap_layers <= row[1].keys()}
        new = [n for n, key in enumerate(keys) if key not in rows]
        if new:
            out = Full().encode(tower, hidden[new], [states[n] for n in new])
            for place, n in enumerate(new):
                rows[keys[n]] = (_held(out.hidden[place]), {k: _held(tap[place]) for k, tap in out.taps.items()})
            if self.learns:
                self.rows.update(rows)
        stacked = torch.stack([rows[key][0] for key in keys]).to(hidden.device)
        taps = {k: torch.stack([rows[key][1][k] for key in keys]).to(hidden.device) for k in tower.tap_layers}
        return Encoded(stacked, taps, refreshed=(True,) * len(states))


def _held(row: Tensor) -> Tensor:
    """In memory of its own, of the host: a file is mapped there."""
    return row.detach().to("cpu", copy=True)


def _key(tower: VisionTower, row: Tensor) -> str:
    about = repr((tuple(row.shape), tower.grid)).encode()
    return hashlib.blake2b(about + row.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


ASKED = ("suite", "limit", "seed", "seeds", "level", "annotations", "videos")
"""Settings that say what is asked."""


def reading_of(settings: RunSettings) -> Reading:
    """As `load_items`, made once in a process for all runs that ask the same: of 480 questions, 65 clips have to be
    dealt, which takes longer than to answer them."""
    return _reading(RunSettings(**{name: getattr(settings, name) for name in ASKED}))


@lru_cache(maxsize=2)
def _reading(asked: RunSettings) -> Reading:
    return load_items(asked)


def prepare(settings: RunSettings, folder: Path, number: int) -> None:
    """Draw the clip of this number, look up what it shows, send it through the tower: a file in `folder`."""
    item, model = reading_of(settings).items[number], model_of(settings)
    if isinstance(model, ClipModel):
        return
    frames = list(item.open(settings.fps))
    tower = SharedTower({}, learns=True)
    shown = replace(item, open=lambda fps: iter(frames))
    (tokens,) = tokens_of(model, [shown], settings.fps, encoder=tower)
    about: dict[str, Any] = {"rows": tower.rows}
    if item.cover is not None:
        about["images"] = torch.from_numpy(np.stack([frame.image for frame in frames]))
        about["times"] = [frame.time_s for frame in frames]
        grid, times = tokens[0].grid, sorted({float(one.time_s[0]) for one in tokens})
        about["cover"] = {time: torch.from_numpy(item.cover(time, grid)) for time in times}
        about["grid"] = grid
    torch.save(about, folder / f"{number}.pt")


def shared_items(settings: RunSettings, folder: Path) -> tuple[Reading, dict[str, _Row]]:
    """The questions of a run, and the tower's outputs, from what was prepared in `folder`."""
    reading = reading_of(settings)
    clips = [_mapped(folder / f"{number}.pt") for number in range(len(reading.items))]
    items = [_from(item, clip) for item, clip in zip(reading.items, clips, strict=True)]
    return Reading(tuple(items), reading.rejected), {k: row for clip in clips for k, row in clip["rows"].items()}


@lru_cache(maxsize=4096)
def _mapped(path: Path) -> dict[str, Any]:
    return torch.load(path, mmap=True, weights_only=True) if path.is_file() else {"rows": {}}


def _from(item: Item, clip: dict[str, Any]) -> Item:
    """The item with what is prepared of it: pictures at the rate they were drawn at, and what they show."""
    if "images" not in clip:
        return item

    def frames(wanted: float) -> Iterator[Frame]:
        times = clip["times"]
        if len(times) > 1 and abs(times[1] - times[0] - 1 / wanted) > 1e-6:
            return item.open(wanted)
        return (Frame(image.numpy(), time) for image, time in zip(clip["images"], times, strict=True))

    def cover(time_s: float, grid: tuple[int, int]) -> np.ndarray:
        if (known := clip["cover"].get(time_s)) is not None and grid == tuple(clip["grid"]):
            return known.numpy()
        assert item.cover is not None
        return item.cover(time_s, grid)

    return Item(item.video, item.queries, frames, cover)
