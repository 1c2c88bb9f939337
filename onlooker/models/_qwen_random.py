"""Qwen-VL models with random weights: right in every size, wrong in every answer; for timing only."""

import dataclasses
import importlib
from typing import Any

import torch

from onlooker.models._qwen import QwenVideoModel
from onlooker.models._qwen_pixels import MOST_FRAME_TOKENS, FittedPixels
from onlooker.models._qwen_vision import QwenVision
from onlooker.models._shapes import QwenShape

_CLASSES = {"qwen2_5_vl": ("Qwen2_5_VL", "Qwen25VL"), "qwen3_vl": ("Qwen3VL", "Qwen3VL")}


def random_qwen(shape: QwenShape, dtype: torch.dtype, device: torch.device, wordless: Any) -> QwenVideoModel:
    """A model of this shape; `wordless` stands in for its tokenizer and its prompt. Seeded by the caller, if at all."""
    adapter = getattr(importlib.import_module(f"onlooker.models.{shape.family}"), _CLASSES[shape.family][1])
    factor = 2 * shape.patch_size
    pixels = FittedPixels(size=(0, 0), factor=factor, max_pixels=MOST_FRAME_TOKENS * factor**2)
    # Frame by frame: what is timed is a frame through the tower, whether it is one picture or two.
    return adapter(_filled(empty_network(shape, dtype), device), wordless, pixels, wordless, shape.name, pairs=False)


def random_vision(shape: QwenShape, dtype: torch.dtype, device: torch.device) -> QwenVision:
    """The seeing half of a model of this shape, with a single language layer beside it."""
    network = _filled(empty_network(dataclasses.replace(shape, text_layers=1), dtype), device)
    return importlib.import_module(f"onlooker.models.{shape.family}").Vision(network)


def empty_network(shape: QwenShape, dtype: torch.dtype) -> Any:
    """The stock network of this shape on the meta device: sizes only, no memory."""
    import transformers

    vision: dict[str, Any] = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_dim,
        "intermediate_size": shape.vision_mlp,
        "num_heads": shape.vision_heads,
        "patch_size": shape.patch_size,
        "out_hidden_size": shape.text_dim,
    }
    text: dict[str, Any] = {
        "num_hidden_layers": shape.text_layers,
        "hidden_size": shape.text_dim,
        "intermediate_size": shape.text_mlp,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    if shape.whole_layers is not None:
        vision |= {"window_size": 8 * shape.patch_size, "fullatt_block_indexes": list(shape.whole_layers)}
    else:
        taps = [layer for layer in shape.tap_layers if layer < shape.vision_layers]
        vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": taps}
        text |= {"head_dim": shape.head_dim}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    name = _CLASSES[shape.family][0]
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision, text_config=text, tie_word_embeddings=shape.tied
    )
    network_class = getattr(transformers, f"{name}ForConditionalGeneration")
    with torch.device("meta"):
        return network_class._from_config(config, dtype=dtype, attn_implementation="sdpa")


def _filled(network: Any, device: torch.device) -> Any:
    # Buffers made on the meta device hold nothing until init_weights fills them, rotary frequencies among them.
    network.to_empty(device=device)
    network.init_weights()
    network.tie_weights()
    return network.eval()
