"""Frames to pixels for models that take pictures of any size: resized to whole merge blocks within pixel bounds."""

import math
from dataclasses import dataclass
from pathlib import Path

from onlooker.core.errors import InputError, ModelError
from onlooker.models._pixels import MODES, Pixels, has_settings, processor_settings

MOST_FRAME_TOKENS, LEAST_FRAME_TOKENS = 768, 128
"""Most and fewest language tokens of one frame of a video, as in the family's reference code for videos."""
LONGEST_ASPECT = 200
"""The family refuses pictures whose sides differ more than this."""

_IMAGE = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
_VIDEO = (("video_preprocessor_config.json", None), ("processor_config.json", "video_processor"))


@dataclass(frozen=True)
class FittedPixels(Pixels):
    """Keeps a picture's aspect ratio: both sides become multiples of `factor`, their product stays within bounds.

    A single frame is treated as the family treats an image; frames of a video as its processor for videos does, where
    the checkpoint has settings of its own for that, else with `LEAST_FRAME_TOKENS` at least. A frame has at most
    `MOST_FRAME_TOKENS` tokens, whatever an image or a whole clip may have.
    """

    factor: int = 28
    """Side of a merge block in pixels: patch size times merge size."""
    min_pixels: int = 56 * 56
    max_pixels: int = MOST_FRAME_TOKENS * 28 * 28

    @classmethod
    def of_checkpoint(
        cls, folder: Path, patch_size: int, merge_size: int, video_frames: int | None = None
    ) -> "FittedPixels":
        """Read the processor's settings: those for images, or for videos whose bounds hold for so many frames
        together. Raises `ModelError` when there are none, or none we can follow."""
        settings = processor_settings(folder, _IMAGE + _VIDEO if video_frames is None else _VIDEO + _IMAGE)
        factor = patch_size * merge_size
        is_video = video_frames is not None and any(has_settings(folder, place) for place in _VIDEO)
        share = video_frames if video_frames is not None and is_video else 1
        try:
            size, mode = settings.get("size") or {}, MODES[settings.get("resample", 3)]
            least = (settings.get("min_pixels") or size["shortest_edge"]) // share
            most = (settings.get("max_pixels") or size["longest_edge"]) // share
            if video_frames is not None and not is_video:
                least = max(least, min(most, LEAST_FRAME_TOKENS * factor**2))
            made_for = (settings.get("patch_size", patch_size), settings.get("merge_size", merge_size))
        except (KeyError, TypeError) as error:
            raise ModelError(
                "the checkpoint's image processor settings are incomplete or of an unknown kind",
                given=f"{folder}: {error}",
                do="give it min_pixels and max_pixels (or size), image_mean, image_std, bicubic or bilinear resampling",
            ) from error
        if made_for != (patch_size, merge_size):
            raise ModelError(
                "the checkpoint's pictures do not fit its tower",
                given=f"processor {made_for}, tower {(patch_size, merge_size)} (patch size, merge size)",
                do="correct its processor settings",
            )
        return cls(
            size=(0, 0),
            mean=tuple(settings["image_mean"]),
            std=tuple(settings["image_std"]),
            mode=mode,
            factor=factor,
            min_pixels=int(least),
            max_pixels=min(int(most), MOST_FRAME_TOKENS * factor**2),
        )

    def fit(self, rows: int, cols: int) -> tuple[int, int]:
        """Rows and columns to which a picture of this size is resized. Raises `InputError` for a mere line."""
        if max(rows, cols) > LONGEST_ASPECT * min(rows, cols):
            raise InputError(
                "a frame is too long and thin for this model",
                given=f"{rows} x {cols} pixels",
                do=f"crop it so that its sides differ by a factor of {LONGEST_ASPECT} at most",
            )
        side = self.factor
        tall, wide = (round(length / side) * side for length in (rows, cols))
        if tall * wide > self.max_pixels:
            shrink = math.sqrt(rows * cols / self.max_pixels)
            tall, wide = (max(side, math.floor(length / shrink / side) * side) for length in (rows, cols))
        elif tall * wide < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (rows * cols))
            tall, wide = (math.ceil(length * grow / side) * side for length in (rows, cols))
        return max(side, tall), max(side, wide)
