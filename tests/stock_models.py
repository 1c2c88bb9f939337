"""The stock Transformers model of a checkpoint, and its inputs for a whole stream at once: what ours must equal."""

import torch
import transformers

FAMILIES = ("llava_onevision", "qwen2_5_vl", "qwen3_vl")
_CLASSES = {
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


def load_stock(folder):
    """The stock model of a folder, in float32 on the CPU."""
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    return getattr(transformers, _CLASSES[kind]).from_pretrained(folder, attn_implementation="sdpa").eval()


def flat_patches(pixels, patch=14, merge=2):
    """Pixels `[frames, channels, rows, cols]` as the stock Qwen towers want them, and grids: one video a frame."""
    frames, channels, rows, cols = pixels.shape
    high, wide = rows // patch, cols // patch
    split = pixels.repeat_interleave(2, 0).view(
        frames, 2, channels, high // merge, merge, patch, wide // merge, merge, patch
    )
    flat = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(frames * high * wide, -1)
    return flat, torch.tensor([[1, high, wide]] * frames)


def offline_inputs(stock, model, frames, question):
    """Inputs of one forward pass over prefix, all frames and the question.

    The text comes from our model; sizes, pixels, placeholders and positions are the stock model's business.
    """
    video, ids = stock.config.video_token_id, list(model.prefix_ids())
    pixels = model.preprocess([frame.image for frame in frames])
    if stock.config.model_type == "llava_onevision":
        for number, frame in enumerate(frames):
            # The library appends one newline embedding after the whole video: the last frame has one place more.
            slots = 4 + (number == len(frames) - 1)
            ids += [*model.frame_ids(frame.time_s), *[video] * slots]
        ids = torch.tensor([ids + model.question_ids(question)])
        return {"input_ids": ids, "pixel_values_videos": torch.stack(pixels)[None]}
    parts = [flat_patches(one[None]) for one in pixels]
    for frame, (_, grid) in zip(frames, parts, strict=True):
        slots = int(grid.prod()) // 4
        ids += [*model.frame_ids(frame.time_s), *[video] * slots, *model.frame_closing_ids()]
    ids = torch.tensor([ids + model.question_ids(question)])
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == video).int() * 2,
        "pixel_values_videos": torch.cat([flat for flat, _ in parts]),
        "video_grid_thw": torch.cat([grid for _, grid in parts]),
    }
