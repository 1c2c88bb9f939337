"""Tiny random checkpoints of every family, made offline in a fraction of a second."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

from onlooker.models._decider import DecisionNet

TowerKind = Literal["siglip", "clip"]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
CORPUS = [
    "what is happening in the video ?",
    "which shape left first ? a red square , a blue circle .",
    "user assistant system You watch a video.",
    "yes no none 0123456789 [00:12] [03:27]",
] * 25
TEMPLATE = (
    "{{ '<|im_start|>system\nYou watch a video.<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}{{ '<video>\n' }}{% elif c['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_TEMPLATE = TEMPLATE.replace("<video>\n", "<|vision_start|><|video_pad|><|vision_end|>").replace(
    "<image>\n", "<|vision_start|><|image_pad|><|vision_end|>"
)


def make_tokenizer(special: list[str] = SPECIAL, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few lines, with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in special if token not in ("<|endoftext|>", "<|im_end|>")],
        padding_side="left",
        model_max_length=32768,
    )
    wrapped.chat_template = template
    return wrapped


def make_network(
    tokenizer: PreTrainedTokenizerFast,
    tower: TowerKind = "siglip",
    image_size: int = 56,
    num_layers: int = 3,
    seed: int = 0,
    timestamps: bool = False,
) -> LlavaOnevisionForConditionalGeneration:
    """A seeded random network: patches of 14 pixels, width 32, weights wide enough that attention matters."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": 14,
    }
    vision = SiglipVisionConfig(**sizes, vision_use_head=False) if tower == "siglip" else CLIPVisionConfig(**sizes)
    text = Qwen2Config(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full" if tower == "siglip" else "default",
        image_grid_pinpoints=[[image_size, image_size]],
        tie_word_embeddings=False,
        **({"onlooker": {"timestamps": "[mm:ss]"}} if timestamps else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlavaOnevisionForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                language = "language_model" in name or "lm_head" in name
                if language and weight.ndim == 2:
                    weight.normal_(0, 0.15)
                elif weight.ndim == 1:  # biases of 0 and norms of 1 would hide mistakes
                    weight.add_(torch.randn_like(weight), alpha=0.1)
                elif "vision_tower" in name and weight.ndim == 2:
                    weight.normal_(0, 0.15)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    return network


def make_folder(
    folder: Path,
    tower: TowerKind = "siglip",
    image_size: int = 56,
    num_layers: int = 3,
    seed: int = 0,
    timestamps: bool = False,
) -> Path:
    """Save network, tokenizer and processor settings as a checkpoint folder."""
    tokenizer = make_tokenizer()
    network = make_network(tokenizer, tower, image_size, num_layers, seed, timestamps)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5] if tower == "siglip" else [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.5, 0.5, 0.5] if tower == "siglip" else [0.26862954, 0.26130258, 0.27577711],
    }
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (image_size // 14) ** 2,
        "vision_feature_select_strategy": "full" if tower == "siglip" else "default",
        "image_processor": {"image_processor_type": "LlavaOnevisionImageProcessor", **pixels},
        "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor", **pixels},
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


def make_qwen_tokenizer() -> PreTrainedTokenizerFast:
    """As `make_tokenizer`, with the marks of the Qwen-VL families."""
    return make_tokenizer(QWEN_SPECIAL, QWEN_TEMPLATE)


def make_qwen_network(tokenizer: PreTrainedTokenizerFast, family: str, num_layers: int = 3, seed: int = 0) -> Any:
    """A seeded random network of `qwen2_5_vl` or `qwen3_vl`: patches of 14 pixels, merged two by two, width 32."""
    vision: dict[str, Any] = {
        "depth": num_layers + 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 14,
        "out_hidden_size": 32,
    }
    text: dict[str, Any] = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    if family == "qwen2_5_vl":
        vision |= {"window_size": 56, "fullatt_block_indexes": [1, num_layers], "tokens_per_second": 2}
        kinds = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    else:
        vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, num_layers - 1]}
        text |= {"head_dim": 8}
        kinds = Qwen3VLConfig, Qwen3VLForConditionalGeneration
    number = tokenizer.convert_tokens_to_ids
    config = kinds[0](
        vision_config=vision,
        text_config=text,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kinds[1](config).eval()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if weight.ndim == 2 and "pos_embed" not in name:
                    weight.normal_(0, 0.15)
                elif weight.ndim == 2:
                    weight.normal_(0, 0.5)
                elif weight.ndim == 1:  # biases of 0 and norms of 1 would hide mistakes
                    weight.add_(torch.randn_like(weight), alpha=0.1)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    return network


def make_qwen_folder(folder: Path, family: str, num_layers: int = 3, seed: int = 0) -> Path:
    """Save network, tokenizer and processor settings of a Qwen-VL family as a checkpoint folder."""
    tokenizer = make_qwen_tokenizer()
    make_qwen_network(tokenizer, family, num_layers, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64},
        "resample": 3,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    kind = "Qwen2VLVideoProcessor" if family == "qwen2_5_vl" else "Qwen3VLVideoProcessor"
    # Qwen3-VL bounds the pixels of a whole clip: the least is that of a clip of one patch.
    video = settings | {"video_processor_type": kind, "do_sample_frames": False, "cap_pixels_per_frame": False}
    video["size"] = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1024}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2), encoding="utf-8")
    return folder


def make_qwen2_5_vl_folder(folder: Path, num_layers: int = 3, seed: int = 0) -> Path:
    """A Qwen2.5-VL checkpoint: layers with and without windows."""
    return make_qwen_folder(folder, "qwen2_5_vl", num_layers, seed)


def make_qwen3_vl_folder(folder: Path, num_layers: int = 3, seed: int = 0) -> Path:
    """A Qwen3-VL checkpoint: two tapped layers."""
    return make_qwen_folder(folder, "qwen3_vl", num_layers, seed)


def make_family_folder(family: str, folder: Path) -> Path:
    """A tiny checkpoint of `llava_onevision` (whose frames carry their time), `qwen2_5_vl` or `qwen3_vl`."""
    return make_folder(folder, timestamps=True) if family == "llava_onevision" else make_qwen_folder(folder, family)


def add_signals(folder: Path, seed: int = 3) -> Path:
    """Give a checkpoint folder what models trained to tell when have: the silence token `,`, two random heads, one of
    each published form, and a random decision net."""
    place = folder / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    heads = ["informative", "relevance"]
    config["onlooker"] = config.get("onlooker", {}) | {"silence": [","], "heads": heads, "decider": {"heads": 4}}
    place.write_text(json.dumps(config), encoding="utf-8")
    chance = torch.Generator().manual_seed(seed)
    two, one = torch.randn(2, 32, generator=chance), torch.randn(1, 32, generator=chance)
    weights = {"informative.weight": two, "relevance.weight": one, "relevance.bias": torch.tensor([0.3])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DecisionNet(32, width=16, heads=4, inner=8)
    weights |= {f"decider.{name}": weight.detach().clone() for name, weight in net.state_dict().items()}
    save_file(weights, folder / "heads.safetensors")
    return folder
