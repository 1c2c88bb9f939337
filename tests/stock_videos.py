"""A stock Qwen-VL model's inputs for one whole video in pairs of frames, as its own processor writes them."""

import importlib
from collections.abc import Sequence

import torch
from transformers import Qwen3VLProcessor

from onlooker.core.frame import Frame


def paired_patches(pixels: torch.Tensor, patch: int = 14, merge: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels `[frames, channels, rows, cols]` of one video as the stock towers want them, and its grid: two frames a
    patch, the last one repeated if there is none to pair it with."""
    if len(pixels) % 2:
        pixels = torch.cat([pixels, pixels[-1:]])
    frames, channels, rows, cols = pixels.shape
    high, wide = rows // patch, cols // patch
    split = pixels.view(frames // 2, 2, channels, high // merge, merge, patch, wide // merge, merge, patch)
    flat = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(frames // 2 * high * wide, -1)
    return flat, torch.tensor([[frames // 2, high, wide]])


def stock_times(frames: Sequence[Frame], fps: float) -> list[float]:
    """The times that Qwen3-VL's own processor writes before the patches of a video of this rate."""
    indices = [round(frame.time_s * fps) for frame in frames]
    return Qwen3VLProcessor._calculate_timestamps(None, indices, fps, 2)  # pyright: ignore[reportArgumentType]


def video_inputs(stock, model, frames: Sequence[Frame], question: str, fps: float) -> dict[str, torch.Tensor]:
    """Inputs of one forward pass over the prompt and one video of an even rate, text by the family's rules.

    `position_ids` are the stock model's own, but that the text after a video of Qwen2.5-VL starts behind its largest
    position, as in the code it was trained with; 5.x starts it behind the longer side of a frame.
    """
    config = stock.config
    video, start, end = config.video_token_id, config.vision_start_token_id, config.vision_end_token_id
    flat, grid = paired_patches(torch.stack(model.preprocess([frame.image for frame in frames])))
    slots = int(grid[0, 1:].prod()) // 4
    before, after = [*model._prompt.prefix_ids], model.question_ids(question)
    more = {}
    if config.model_type == "qwen2_5_vl":
        middle = [start, *[video] * (int(grid[0, 0]) * slots), end]
        more = {"second_per_grid_ts": torch.tensor([2 / fps], dtype=torch.float64)}
    else:
        middle = []
        for time_s in stock_times(frames, fps):
            middle += [*model._prompt.text_ids(f"<{time_s:.1f} seconds>"), start, *[video] * slots, end]
    ids = torch.tensor([before + middle + after])
    kinds = (ids == video).int() * 2
    places, _ = stock.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=grid.clone(), **more)
    if config.model_type == "qwen2_5_vl":
        text = len(before) + 1 + int(grid[0, 0]) * slots
        places[:, :, text:] += places[:, :, :text].max() + 1 - places[0, 0, text]
    return {
        "input_ids": ids,
        "position_ids": places,
        "pixel_values_videos": flat,
        "video_grid_thw": grid,
        "mm_token_type_ids": kinds,
    }


def video_processor(family: str, **settings):
    """The family's own video processor; needs torchvision."""
    name = {"qwen2_5_vl": ("qwen2_vl", "Qwen2VL"), "qwen3_vl": ("qwen3_vl", "Qwen3VL")}[family]
    module = importlib.import_module(f"transformers.models.{name[0]}.video_processing_{name[0]}")
    return getattr(module, f"{name[1]}VideoProcessor")(**settings)
