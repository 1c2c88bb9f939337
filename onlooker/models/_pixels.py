"""Frames to pixels, as the checkpoint's own processor would make them, in plain PyTorch."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.errors import ModelError

MODES = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers for the two ways of resizing that PyTorch shares."""


@dataclass(frozen=True)
class Pixels:
    """How a checkpoint wants its pictures."""

    size: tuple[int, int]
    """Rows and columns."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    mode: str = "bicubic"

    @classmethod
    def from_folder(cls, folder: Path) -> "Pixels":
        """Read the processor's settings. Raises `ModelError` when there are none, or none we can follow."""
        settings = processor_settings(folder)
        try:
            size, resample = settings["size"], settings.get("resample", 3)
            return cls(
                size=(int(size["height"]), int(size["width"])),
                mean=tuple(settings["image_mean"]),
                std=tuple(settings["image_std"]),
                mode=MODES[resample],
            )
        except (KeyError, TypeError) as error:
            raise ModelError(
                "the checkpoint's image processor settings are incomplete or of an unknown kind",
                given=f"{folder}: {error}",
                do="give it size (height and width), image_mean, image_std, and bicubic or bilinear resampling",
            ) from error

    def fit(self, rows: int, cols: int) -> tuple[int, int]:
        """Rows and columns to which a picture of this size is resized."""
        return self.size

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The picture as `prepare` would resize it, uint8 `[rows, cols, 3]`; preparing that gives the same pixels."""
        size = self.fit(*image.shape[:2])
        if image.shape[:2] == size:
            return image
        batch = torch.from_numpy(image).permute(2, 0, 1)[None]
        return F.interpolate(batch, size=size, mode=self.mode, antialias=True)[0].permute(1, 2, 0).contiguous().numpy()

    def prepare(self, images: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
        """float32 `[3, rows, cols]` on the device per uint8 `[rows, cols, 3]` image; equal sizes share one resize.

        Resizing happens in uint8 on the CPU, where it is exact: equal to the torchvision processors of
        Transformers bit by bit, and to those of PIL within two grey levels (on noise; one on photographs).
        """
        done: list[Tensor | None] = [None] * len(images)
        mean, std = _levels(self.mean, device), _levels(self.std, device)
        for shape in dict.fromkeys(image.shape for image in images):
            places = [place for place, image in enumerate(images) if image.shape == shape]
            pinned = device.type == "cuda"  # so that the copy is not waited for
            batch = torch.empty(len(places), *shape, dtype=torch.uint8, pin_memory=pinned)
            np.stack([images[place] for place in places], out=batch.numpy())
            batch = batch.permute(0, 3, 1, 2)
            if shape[:2] != (size := self.fit(*shape[:2])):
                batch = F.interpolate(batch, size=size, mode=self.mode, antialias=True)
                batch = batch.pin_memory() if pinned else batch
            pixels = (_uploaded(batch, device).float() - mean) / std
            for place, picture in zip(places, pixels, strict=True):
                done[place] = picture
        return [picture for picture in done if picture is not None]


def _uploaded(batch: Tensor, device: torch.device) -> Tensor:
    """Pinned pictures on the device. On a queue of their own, so that they come up while the device is still at work on
    the step before, behind which all that is asked of it next has to wait."""
    if device.type != "cuda":
        return batch.to(device)
    here, beside = torch.cuda.current_stream(device), _uploads(device)
    with torch.cuda.stream(beside):
        moved = batch.to(device, non_blocking=True)
    here.wait_stream(beside)
    moved.record_stream(here)  # or its memory would be given out again behind the copy
    return moved


@functools.cache
def _uploads(device: torch.device) -> torch.cuda.Stream:
    """The queue of all uploads to a device."""
    return torch.cuda.Stream(device)


@functools.lru_cache(maxsize=32)
def _levels(of_one: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers of each colour in grey levels, `[3, 1, 1]`: made once, as bringing them to a device waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(of_one, device=device)[:, None, None] * 255


VIDEO_FIRST = (
    ("video_preprocessor_config.json", None),
    ("processor_config.json", "video_processor"),
    ("processor_config.json", "image_processor"),
    ("preprocessor_config.json", None),
)
"""Where processors keep their settings (file, and the part of it), those for videos before those for images."""


def processor_settings(folder: Path, places: Sequence[tuple[str, str | None]] = VIDEO_FIRST) -> dict[str, Any]:
    """The first settings of a processor that tell a mean. Raises `ModelError` when there are none, or damaged ones."""
    for place in places:
        if settings := _settings(folder, place):
            return settings
    raise ModelError(
        "the checkpoint has no image processor settings",
        given=str(folder),
        do="add its preprocessor_config.json or processor_config.json",
    )


def has_settings(folder: Path, place: tuple[str, str | None]) -> bool:
    """Whether there are settings in this place."""
    return _settings(folder, place) is not None


def _settings(folder: Path, place: tuple[str, str | None]) -> dict[str, Any] | None:
    name, part = place
    path = folder / name
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "the checkpoint's image processor settings cannot be read",
            given=f"{path}: {error}",
            do="fetch the checkpoint again",
        ) from error
    settings = settings if part is None else settings.get(part)
    return settings if settings and "image_mean" in settings else None
