"""Write a trained model as a Hugging Face folder: `python -m recipes.pocket.export --model out/pocket/naive`."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from onlooker.models import _eight_bits
from recipes.pocket.evaluate import LABEL_SIZES, load_checkpoint
from recipes.pocket.model import Pocket, PocketSizes
from recipes.pocket.tokenizer import MAX_VOCABULARY, Encoder, build_tokenizer

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


def write_weights(model: Pocket, file: Path) -> None:
    """Write the weights of a model in training as `export` would in eight bits; the old file stays until then."""
    with torch.random.fork_rng(devices=[]):  # what is drawn for nothing must not change the training
        fresh = Pocket(model.sizes, Encoder(), MAX_VOCABULARY, model.label_sizes)
    fresh.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        export(fresh, Path(folder), eight_bits=True)
        part = file.with_name(file.name + ".part")
        shutil.copyfile(Path(folder) / _eight_bits.FILE, part)
    part.replace(file)


def adopt(file: Path, folder: Path) -> Path:
    """A model folder around the weights of `write_weights`."""
    model = Pocket(PocketSizes(), Encoder(), MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
    export(model, folder, eight_bits=True)
    shutil.copyfile(file, folder / _eight_bits.FILE)
    return folder


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="training state of train.py (out/pocket/naive)")
    source.add_argument("--weights", type=Path, help="what train.py --weights wrote (out/pocket/naive.safetensors)")
    parser.add_argument("--plain", action="store_true", help="bfloat16, for Transformers, instead of eight bits")
    parser.add_argument("--to", type=Path, help="folder to write; by default where the package keeps this branch")
    given = parser.parse_args(argv)
    if given.weights:
        folder = adopt(given.weights, given.to or FOLDERS[given.weights.stem])
    else:
        model, _ = load_checkpoint(given.model, torch.device("cpu"), PocketSizes())
        folder = export(model, given.to or FOLDERS[given.model.name], eight_bits=not given.plain)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{folder}: {size} bytes of weights")


if __name__ == "__main__":
    main()
