"""Pocket World: a procedural video world with exact ground truth.

The script of an `Episode` is the truth: a frame is a pure function of the episode and a time in it, and every
question, answer and span of evidence is read off the script. Rendering needs torch, imported on first use.
"""

from typing import TYPE_CHECKING, Any

from onlooker.world.episode import Episode
from onlooker.world.generate import KINDS, make_episode
from onlooker.world.levels import LEVEL_NAMES, LEVELS, Level
from onlooker.world.lexicon import COLOURS, LEVEL_TASKS, SHAPES, TASKS, TEMPLATES, VOCABULARY, corpus, split_words
from onlooker.world.tables import render_tables
from onlooker.world.world_settings import WorldSettings

if TYPE_CHECKING:
    from onlooker.world.export import video_record, write_records, write_video
    from onlooker.world.labels import change_frames, patch_labels
    from onlooker.world.raster import Raster, rasterise, to_torch

__all__ = [
    "COLOURS", "KINDS", "LEVELS", "LEVEL_NAMES", "LEVEL_TASKS", "SHAPES", "TASKS", "TEMPLATES", "VOCABULARY", "Episode",
    "Level", "Raster", "WorldSettings",
    "change_frames", "corpus", "make_episode", "patch_labels", "rasterise", "render_tables", "split_words", "to_torch",
    "video_record", "write_records", "write_video",
]  # fmt: skip

_LATE = {
    "Raster": "raster", "rasterise": "raster", "to_torch": "raster", "patch_labels": "labels",
    "change_frames": "labels",
    "video_record": "export", "write_records": "export", "write_video": "export",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs torch or PyAV only when it is asked for."""
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f"onlooker.world.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
