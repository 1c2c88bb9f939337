"""Tiny random models of families without an adapter, and a stand-in for processors whose packages may be missing."""

import numpy as np
import torch
from PIL import Image
from tiny import TEMPLATE, make_tokenizer
from transformers import (
    BatchFeature,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

SIDE, FRAME_TOKENS = 56, 4
MARKS = {
    "smolvlm": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"],
    "internvl": ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"],
}


def make_other_tokenizer(family):
    """A tokenizer with the marks of `smolvlm` or `internvl`, and a template that puts the picture's mark per image."""
    template = TEMPLATE.replace("<image>", MARKS[family][0])
    return make_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS[family]], template)


def make_other_network(family, tokenizer, seed=0):
    """A seeded random network: pictures of 56 pixels become four tokens."""
    text = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 14,
    }
    shared = {"vision_config": vision, "image_token_id": tokenizer.convert_tokens_to_ids(MARKS[family][0])}
    if family == "smolvlm":
        text = {"model_type": "llama", **text}
        config = SmolVLMConfig(text_config=text, scale_factor=2, tie_word_embeddings=False, **shared)
        kind = SmolVLMForConditionalGeneration
    else:
        text = {"model_type": "qwen2", **text}
        config = InternVLConfig(text_config=text, image_seq_length=4, tie_word_embeddings=False, **shared)
        kind = InternVLForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config).eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight.normal_(0, 0.2) if weight.ndim == 2 else weight.add_(torch.randn_like(weight), alpha=0.1)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    return network


class PlainProcessor:
    """What the library's processors do to square pictures, one after the other: resize, scale, put placeholders."""

    def __init__(self, family, tokenizer):
        self.family, self.tokenizer = family, tokenizer

    def apply_chat_template(self, messages, add_generation_prompt, tokenize, return_dict, return_tensors):
        """Ids, mask and pixels of a conversation, as the processors of the two families return them."""
        assert add_generation_prompt and tokenize and return_dict and return_tensors == "pt"
        mark = MARKS[self.family][0]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        text = text.replace(mark, mark * FRAME_TOKENS)
        pictures = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        pixels = np.stack([np.asarray(p.resize((SIDE, SIDE), Image.BICUBIC)) for p in pictures]) / 127.5 - 1
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        ids = self.tokenizer(text, return_tensors="pt")
        return BatchFeature(
            {
                "input_ids": ids["input_ids"],
                "attention_mask": ids["attention_mask"],
                "pixel_values": pixels[None] if self.family == "smolvlm" else pixels,
            }
        )
