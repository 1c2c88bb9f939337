"""Write a trained model as a Hugging Face folder: `python -m recipes.pocket.export --model out/pocket/naive`."""

import argparse
import json
from pathlib import Path

import torch

from onlooker.models import _eight_bits
from recipes.pocket.evaluate import load_checkpoint
from recipes.pocket.model import Pocket, PocketSizes, count_parameters
from recipes.pocket.tokenizer import build_tokenizer

MOST_BYTES = 8_000_000
"""All models of the package must fit into 48 MB."""
NAMES = {"naive": "pocket-naive", "neutral": "pocket-neutral", "aware": "pocket-stc"}
"""Arm to the name of its model (`pocket-aware` is an older checkpoint, of L0 only)."""
FOLDERS = {arm: Path("onlooker/models") / name.replace("-", "_") for arm, name in NAMES.items()}


def export(model: Pocket, folder: Path, dtype: torch.dtype = torch.bfloat16, *, eight_bits: bool = False) -> Path:
    """Write weights, configuration, tokenizer and processor settings into `folder`.

    `eight_bits` leaves the weights as `onlooker.models` keeps those of the package; Transformers alone cannot read
    them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes, tokenizer = model.sizes, build_tokenizer()
    network = model.hf.cpu().to(dtype)
    network.config.dtype = dtype
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.generation_config.do_sample = False
    network.generation_config.max_new_tokens = 8
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Written by hand: the processor classes need torchvision even to be saved.
    picture = {
        "do_convert_rgb": True, "do_resize": True, "resample": 3, "size": {"height": sizes.image, "width": sizes.image},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    image = picture | {
        "image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": [[sizes.image, sizes.image]],
        "do_pad": True,
    }  # fmt: skip
    video = picture | {"video_processor_type": "LlavaOnevisionVideoProcessor", "do_sample_frames": False}
    processor = {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": sizes.side**2,
        "vision_feature_select_strategy": "full", "image_token": "<image>", "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_1",
    }  # fmt: skip
    for name, content in (
        ("preprocessor_config", image),
        ("video_preprocessor_config", video),
        ("processor_config", processor),
    ):
        content = content | {"processor_class": "LlavaOnevisionProcessor"}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    if eight_bits and (size := _eight_bits.shrink(folder).stat().st_size) > MOST_BYTES:
        raise ValueError(f"the weights take {size} bytes, more than {MOST_BYTES}: make the model smaller")
    return folder


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="training state of train.py (out/pocket/naive)")
    parser.add_argument("--plain", action="store_true", help="bfloat16, for Transformers, instead of eight bits")
    parser.add_argument("--to", type=Path, help="folder to write; by default where the package keeps this branch")
    given = parser.parse_args(argv)
    model, _ = load_checkpoint(given.model, torch.device("cpu"), PocketSizes())
    folder = export(model, given.to or FOLDERS[given.model.name], eight_bits=not given.plain)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{folder}: {count_parameters(model)} parameters, {size} bytes of weights")


if __name__ == "__main__":
    main()
